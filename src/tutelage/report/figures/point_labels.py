"""Names beside the points of a scatter plot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tutelage.report.figures.frame import Array, shortened
from tutelage.report.svg import QUIET

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def label_points(
    axes: Axes, names: Sequence[str], xs: Array, ys: Array, labelled: Sequence[int], length: int = 18
) -> None:
    """Write the names of the ``labelled`` points beside them, with a line if needed.

    A name is truncated to ``length`` characters, and left out where it would cover another point or name.
    """
    positions = axes.transData.transform(np.stack([xs, ys], 1)) * 72 / axes.figure.dpi
    frame = axes.bbox.bounds
    bottom, top = (frame[1] * 72 / axes.figure.dpi, (frame[1] + frame[3]) * 72 / axes.figure.dpi)
    right = (frame[0] + frame[2]) * 72 / axes.figure.dpi + 8
    occupied = [(x - 4, y - 4, x + 4, y + 4) for x, y in positions]
    for number in sorted(labelled, key=lambda index: -positions[index][1]):
        x, y = positions[number]
        name = shortened(names[number], length)
        width = 5.4 * len(name)
        offsets = [(7.0, 0.0), (-7.0 - width, 0.0)]
        offsets += [
            (sideways, away * step)
            for step in (11, 20, 29, 38, 47)
            for away in (1, -1)
            for sideways in (8.0, -8.0 - width)
        ]
        for dx, dy in offsets:
            box = (x + dx, y + dy - 5, x + dx + width, y + dy + 5)
            inside = box[0] > frame[0] * 72 / axes.figure.dpi and box[2] < right and bottom < box[1] and box[3] < top
            if inside and not any(_overlap(box, other) for other in occupied):
                break
        else:
            continue
        occupied.append(box)
        arrow = {"arrowstyle": "-", "color": QUIET, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4} if dy else None
        side, start = ("right", dx + width) if dx < 0 else ("left", dx)  # the estimated width is wrong at the far end
        axes.annotate(
            name, (xs[number], ys[number]), (start, dy), textcoords="offset points", ha=side, va="center", fontsize=10,
            arrowprops=arrow,
        )  # fmt: skip


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
