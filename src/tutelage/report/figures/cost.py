"""A metric against the cost of training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import MappingProxyType

import numpy as np

from tutelage.report.figures.frame import (
    Array,
    Block,
    Panel,
    Place,
    Section,
    blank_figure,
    floor_of,
    limits_of,
    name_axes,
    stroke,
    title_of,
)
from tutelage.report.figures.point_labels import label_points
from tutelage.report.svg import ACCENT, INK, PAPER, QUIET, SECOND, Sheet
from tutelage.report.tables import interval_note
from tutelage.studies import PLAIN, TEACHER
from tutelage.studies.results import Results, Row


def cost(results: Results, rows: Sequence[Row], sheet: Sheet) -> Section | None:
    """Scatter plots against training time and forward passes."""
    groups: dict[Place, list[Row]] = {}
    for row in rows:
        if row.mean is not None:
            groups.setdefault((row.cell.condition, row.cell.pair), []).append(row)
    metric, blocks = rows[0].metric, []
    for key, group in groups.items():
        title = title_of(results, key, len(groups) > 1)
        panels = [
            Panel("", svg)
            for cost, words in (("seconds", "training time, s"), ("forward_passes", "forward passes of training"))
            if (svg := _scatter(sheet, group, cost, words, title))
        ]
        if panels:
            blocks.append(Block(title, tuple(panels)))
    some_unnamed = any(len(group) > _LABELLED for group in groups.values())
    note = (
        f"{_BETTER[metric.better]} Means over seeds; "
        + (
            f"{no_interval[0].lower()}{no_interval[1:]}. "
            if (no_interval := interval_note(results))
            else "bars: 95 % interval. "
        )
        + "Square: plain; diamond: the teacher. Times are those of the machine that ran the study, and "
        "comparable only if it ran nothing else; networks that were trained together all count."
        + (" Only methods that no cheaper method beats are named; the table has all." if some_unnamed else "")
    )
    return Section("cost", f"Cost against {metric.title}", note, tuple(blocks), width=380) if blocks else None


_LABELLED = 14
_BETTER = MappingProxyType(
    {
        "higher": "Up and to the left is better.",
        "lower": "Down and to the left is better.",
        None: "To the left is cheaper.",
    }
)


def _scatter(sheet: Sheet, group: Sequence[Row], cost: str, words: str, title: str) -> str:
    """One metric against one cost; empty where the cost was not measured."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    points = [
        (row.cell.method, float(np.mean(values)), row.mean)
        for row in group
        if row.mean is not None and (values := row.cell.values(cost)) is not None
    ]
    if not points:
        return ""
    metric = group[0].metric
    scale = 100 if metric.percent else 1
    figure = blank_figure(380, 270, left=38, top=24, bottom=36)
    (axes,) = figure.axes
    xs = np.asarray([x for _, x, _ in points])
    ys = scale * np.asarray([mean.mean for *_, mean in points])
    bars = [scale * np.asarray([mean.low, mean.high]) for *_, mean in points]
    low, high = limits_of([xs, np.zeros(1)])
    axes.set_xlim(max(0, low), high + 0.12 * (high - low))
    axes.set_ylim(*limits_of([ys, *bars], floor_of([ys]), scale if scale == 100 else math.inf))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    name_axes(axes, words, metric.title + (", %" if scale == 100 else ""))
    for x, bar in zip(xs, bars, strict=True):
        axes.add_artist(stroke([x, x], np.clip(bar, *axes.get_ylim()), QUIET, linewidth=1, alpha=0.7))
    for (name, x, _), y in zip(points, ys, strict=True):
        marker = {PLAIN: "s", TEACHER: "D"}.get(name, "o")
        colour = {PLAIN: INK, TEACHER: SECOND}.get(name, ACCENT)
        edge = {"markeredgecolor": PAPER, "markeredgewidth": 0.8}
        axes.add_artist(stroke([x], [y], colour, marker=marker, markersize=6.5, **edge))
    names = [name for name, *_ in points]
    label_points(axes, names, xs, ys, _front(names, xs, ys, metric.better))
    return sheet.drawing(figure, f"{metric.title} against {words}{f'; {title}' if title else ''}")


def _front(names: Sequence[str], xs: Array, ys: Array, better: str | None) -> list[int]:
    """Select the points to label: all if few, otherwise plain, the teacher and those that no cheaper one beats."""
    if len(names) <= _LABELLED:
        return list(range(len(names)))
    goodness = ys if better == "higher" else -ys
    return [
        number
        for number, name in enumerate(names)
        if name in (PLAIN, TEACHER) or not ((xs <= xs[number]) & (goodness > goodness[number])).any()
    ]
