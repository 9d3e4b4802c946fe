"""Reliability diagrams: accuracy against confidence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tutelage.report.figures.frame import (
    Array,
    Block,
    Panel,
    Section,
    area,
    blank_figure,
    name_axes,
    places,
    rectangle,
    stroke,
    title_of,
)
from tutelage.report.svg import ACCENT, INK, QUIET, Sheet
from tutelage.studies import PLAIN
from tutelage.studies.reading import Record
from tutelage.studies.results import Results, missing_reason

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes


def reliability(results: Results, sheet: Sheet) -> Section | None:
    """Reliability diagrams."""
    groups = places(results.cells)
    pooled = []
    for key, cells in groups.items():
        bins = {cell.method: _pool(cell.runs) for cell in cells if all(run.get("reliability") for run in cell.runs)}
        if bins:
            pooled.append((title_of(results, key, len(groups) > 1), cells, bins))
    if not pooled:
        return None

    def frame(axes: Axes) -> None:
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 100)
        axes.set_xticks([0, 50, 100])
        axes.set_yticks([0, 50, 100])
        axes.plot([0, 100], [0, 100], color=QUIET, linewidth=0.8)
        name_axes(axes, "confidence, %", "accuracy, %")

    marks = [
        _draw_reliability(one, bins.get(PLAIN) if name != PLAIN else None)
        for _, _, bins in pooled
        for name, one in bins.items()
    ]
    labels = [
        f"{name}: reliability diagram{f'; {title}' if title else ''}" for title, _, bins in pooled for name in bins
    ]
    svgs = iter(sheet.panels(blank_figure(170, 172), frame, marks, labels))
    blocks = []
    for title, cells, bins in pooled:
        panels = []
        for cell in cells:
            ece = cell.values("ece")
            caption = (
                missing_reason(cell)
                if cell.method not in bins
                else f"ECE {np.mean(ece):.3f}"
                if ece is not None
                else ""
            )
            panels.append(Panel(cell.method, next(svgs) if cell.method in bins else "", caption))
        blocks.append(Block(title, tuple(panels)))
    note = (
        "Accuracy at each confidence, samples of all seeds pooled; no intervals. On the diagonal the network is "
        "calibrated; below it, overconfident. Grey columns: the distribution of its samples. "
        "Dashed: the plain student. ECE: expected calibration error, mean over seeds."
    )
    return Section("reliability", "Calibration", note, tuple(blocks), width=170)


def _pool(runs: Sequence[Record]) -> tuple[Array, Array, Array]:
    """Pooled counts, accuracies and confidences of the bins of several runs, without empty bins."""
    count, accuracy, confidence = (
        np.asarray([[value or 0 for value in run["reliability"][name]] for run in runs], dtype=np.float64)
        for name in ("count", "accuracy", "confidence")
    )
    total = count.sum(0)
    occupied = total > 0
    mean = [(count * part).sum(0)[occupied] / total[occupied] for part in (accuracy, confidence)]
    return total[occupied] / total.sum(), 100 * mean[0], 100 * mean[1]


def _draw_reliability(bins: tuple[Array, Array, Array], plain: tuple[Array, Array, Array] | None) -> list[Artist]:
    count, accuracy, confidence = bins
    columns = [
        rectangle(max(0, at - 2.4), 0, min(100, at + 2.4), 30 * share / count.max())
        for at, share in zip(confidence, count, strict=True)
    ]
    artists = [area(columns, QUIET, 0.3)]
    if plain is not None:
        artists.append(stroke(plain[2], plain[1], INK, linewidth=1.1, dashes=(3.2, 2)))
    colour = INK if plain is None else ACCENT
    return [*artists, stroke(confidence, accuracy, colour, linewidth=1.5, marker="o", markersize=3.6)]
