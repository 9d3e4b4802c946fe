"""A metric along an axis of conditions: label noise or class imbalance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tutelage.report.figures.curves import Line, about_bands, line_panels
from tutelage.report.figures.frame import Array, Block, Section
from tutelage.report.svg import Sheet
from tutelage.studies.results import Results, Row, missing_reason

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_KINDS: Mapping[str, Mapping[str, tuple[str, float | None, bool]]] = {
    "noise": {
        "symmetric": ("rate of labels changed to another class", 0, False),
        "uniform": ("rate of labels redrawn uniformly", 0, False),
        "pair": ("rate of labels changed to the next class", 0, False),
        "instance": ("rate of instance-dependent wrong labels", 0, False),
        "missing": ("rate of missing labels", 0, False),
    },
    "imbalance": {
        "powerlaw": ("gamma of the power law; more imbalanced to the right", None, False),
        "longtail": ("smallest / largest class; more imbalanced to the right", 1, True),
        "step": ("rare / other classes; more imbalanced to the right", 1, True),
    },
}


_AXES = {"noise": "label noise", "imbalance": "class imbalance"}


def _level(axis: str, value: str) -> tuple[str, float] | None:
    """The kind and level of a condition; ``None`` without a number, for example for labels from a file."""
    kind, _, level = value.rpartition(":")
    try:
        number = float(level)
    except ValueError:
        return None
    kind = kind or "symmetric"
    return (kind, number) if kind.partition(":")[0] in _KINDS[axis] else None


def along(results: Results, rows: Sequence[Row], sheet: Sheet, axis: str) -> Section | None:
    """A metric against the level of an axis, all else equal, for kinds with at least two levels."""
    axis_index = ("data", "noise", "imbalance").index(axis)
    groups: dict[tuple[Any, ...], dict[tuple[str, Any], Row]] = {}
    for row in rows:
        condition, pair = row.cell.condition, row.cell.pair
        rest_of_key = (condition[:axis_index], condition[axis_index + 1 :], pair)
        groups.setdefault(rest_of_key, {})[row.cell.method, condition[axis_index]] = row
    values = list(dict.fromkeys(row.cell.condition[axis_index] for row in rows))
    kinds = dict.fromkeys(match[0] for value in values if value is not None and (match := _level(axis, value)))
    metric = rows[0].metric
    share = metric.percent
    scale = 100 if share else 1
    blocks: list[Block] = []
    for kind in kinds:
        words, neutral, logarithmic = _KINDS[axis][kind.partition(":")[0]]
        levels = {
            value: match[1]
            for value in values
            if value is not None and (match := _level(axis, value)) and match[0] == kind
        }
        if None in values and neutral is not None:
            levels = {None: float(neutral), **levels}
        levels = dict(sorted(levels.items(), key=lambda entry: entry[1]))
        if len(levels) < 2:
            continue
        positions = np.log10(list(levels.values())) if logarithmic else np.asarray(list(levels.values()))
        positions = -positions if axis == "imbalance" else positions
        lines: dict[str, dict[str, Line | str]] = {}
        for rest_of_key, group in groups.items():
            title = _heading(results, rest_of_key, levels, len(groups) > 1)
            for method in dict.fromkeys(name for name, _ in group):
                line = _of_rows(positions, [group.get((method, value)) for value in levels], scale)
                lines.setdefault(", ".join(filter(None, (title, kind if len(kinds) > 1 else ""))), {})[method] = line
        frame = partial(_ticks, positions=positions, names=[f"{level:g}" for level in levels.values()])
        name = metric.title + (", %" if share else "")
        blocks += line_panels(sheet, lines, frame=frame, x=words, y=name, high=scale if share else math.inf)
    note = f"How the {metric.title} changes with {_AXES[axis]}, all else equal. {about_bands(results)}"
    title = f"{metric.heading} against {_AXES[axis]}"
    return Section(axis, title, note, tuple(blocks)) if blocks else None


def _ticks(axes: Axes, positions: Array, names: Sequence[str]) -> None:
    axes.set_xticks(positions, names)


def _of_rows(x: Array, rows: Sequence[Row | None], scale: float) -> Line | str:
    """A line through the means of rows, or the reason why a mean is missing."""
    means = [row.mean if row is not None else None for row in rows]
    if None in means:
        return next((missing_reason(row.cell) for row in rows if row is not None and row.mean is None), "not measured")
    mean = scale * np.asarray([interval.mean for interval in means if interval], dtype=np.float64)
    return Line(x, mean, scale * np.asarray([interval.high for interval in means if interval], dtype=np.float64) - mean)


def _heading(results: Results, rest_of_key: tuple[Any, ...], levels: Mapping[Any, float], several: bool) -> str:
    """Describe the values of the other axes."""
    if not several:
        return ""
    before, after, pair = rest_of_key
    with_, without = (results.heading((*before, level, *after), pair) for level in list(levels)[:2])
    # Only the words of the axis differ between two of its levels.
    return ", ".join(a for a, b in zip(with_.split(", "), without.split(", "), strict=True) if a == b)
