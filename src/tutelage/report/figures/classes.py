"""The accuracy of each class."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from tutelage.report.figures.frame import (
    Block,
    Panel,
    Section,
    area,
    blank_figure,
    places,
    rectangle,
    shortened,
    stroke,
    title_of,
)
from tutelage.report.svg import ACCENT, INK, SECOND, Sheet
from tutelage.studies import PLAIN
from tutelage.studies.reading import Record
from tutelage.studies.results import Results, missing_reason

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes


def per_class(results: Results, sheet: Sheet) -> Section | None:
    """Bars of the classes."""
    groups = places(results.cells)
    blocks = []
    for key, cells in groups.items():
        complete = {cell.method: cell for cell in cells if all(run.get("per_class_accuracy") for run in cell.runs)}
        if not complete:
            continue
        means = {name: _class_means(cell.runs) for name, cell in complete.items()}
        classes = list(next(iter(means.values())))
        step = 11.5 if len(classes) <= 24 else max(2.2, 260 / len(classes))
        left = 12 + 5.2 * max(len(shortened(name, 12)) for name in classes) if len(classes) <= 24 else 12
        figure = blank_figure(200, 34 + step * len(classes), left=left, top=4, bottom=30)
        frame = partial(_class_frame, classes=classes)
        plain = means.get(PLAIN)
        marks = [_draw_classes(mean, plain if name != PLAIN else None) for name, mean in means.items()]
        title = title_of(results, key, len(groups) > 1)
        labels = [f"{name}: test accuracy of each class{f'; {title}' if title else ''}" for name in means]
        svgs = dict(zip(means, sheet.panels(figure, frame, marks, labels), strict=True))
        panels = []
        for cell in cells:
            if cell.method not in svgs:
                panels.append(Panel(cell.method, "", missing_reason(cell)))
                continue
            worst = min(means[cell.method], key=lambda name: means[cell.method][name])
            caption = f"worst: {shortened(worst, 12)}, {100 * means[cell.method][worst]:.1f}\u00a0%"
            panels.append(Panel(cell.method, svgs[cell.method], caption))
        blocks.append(Block(title, tuple(panels)))
    note = (
        "Test accuracy of each class, mean over seeds; no intervals. The worst class is outlined and named. "
        "Black lines: the plain student."
    )
    return Section("classes", "Accuracy of each class", note, tuple(blocks)) if blocks else None


def _class_means(runs: Sequence[Record]) -> dict[str, float]:
    return {
        name: float(np.mean([run["per_class_accuracy"][name] for run in runs]))
        for name in runs[0]["per_class_accuracy"]
    }


def _class_frame(axes: Axes, classes: Sequence[str]) -> None:
    axes.set_xlim(0, 100)
    axes.set_ylim(len(classes) - 0.4, -0.6)
    axes.set_xticks([0, 50, 100])
    has_names = len(classes) <= 24
    axes.set_yticks(
        range(len(classes)) if has_names else [], [shortened(name, 12) for name in classes] if has_names else []
    )
    axes.grid(visible=False, axis="y")
    axes.spines.left.set_visible(False)
    axes.tick_params(pad=3)
    axes.set_xlabel("accuracy, %" if has_names else f"accuracy, %; {len(classes)} classes", labelpad=2)


def _draw_classes(mean: Mapping[str, float], plain: Mapping[str, float] | None) -> list[Artist]:
    worst = list(mean).index(min(mean, key=lambda name: mean[name]))
    bars = [rectangle(0, row - 0.36, 100 * value, row + 0.36) for row, value in enumerate(mean.values())]
    worst_bar = bars.pop(worst)
    artists = [area(bars, ACCENT, 0.5)] if bars else []
    x, y = zip(*worst_bar, worst_bar[0], strict=True)
    artists += [area([worst_bar], SECOND, 0.3), stroke(x, y, SECOND, linewidth=1.3)]
    if plain is not None:
        across = [part for name in mean for part in (*[100 * plain.get(name, math.nan)] * 2, math.nan)]
        down = [part for row in range(len(mean)) for part in (row - 0.45, row + 0.45, math.nan)]
        artists.append(stroke(across, down, INK, linewidth=1.3))
    return artists
