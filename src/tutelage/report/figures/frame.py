"""Panels, blocks and sections of figures, and helpers for drawing them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tutelage.report.svg import INK, QUIET
from tutelage.studies.results import Cell, Results
from tutelage.studies.statistics import FEWEST_SEEDS

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Array = np.ndarray[Any, np.dtype[np.float64]]


Place = tuple[tuple[Any, ...], tuple[str, str]]
"""A condition and a pair of networks."""


@dataclass(frozen=True)
class Panel:
    """A figure with its title and a note; without a figure, the note is the reason."""

    title: str
    svg: str
    note: str = ""


@dataclass(frozen=True)
class Block:
    """The panels of one condition and pair; without a title where there is only one."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Section:
    """Figures of one kind. ``note`` explains them and their bands."""

    key: str
    title: str
    note: str
    blocks: tuple[Block, ...]
    width: int = 200


def places(cells: Iterable[Cell]) -> dict[Place, list[Cell]]:
    """The cells of each condition and pair."""
    groups: dict[Place, list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.condition, cell.pair), []).append(cell)
    return groups


def over_seeds(values: Array) -> tuple[Array, Array]:
    """Means, and halves of their 95 % t intervals, of shape (points,), from values (seeds, points)."""
    from scipy import stats

    n = len(values)
    mean = values.mean(0)
    if n < FEWEST_SEEDS:
        return mean, np.full_like(mean, np.nan)
    return mean, stats.t.ppf(0.975, n - 1) * values.std(0, ddof=1) / math.sqrt(n)


def blank_figure(width: float, height: float, left: float = 30, top: float = 20, bottom: float = 30) -> Figure:
    """A figure of this size in points, with margins for the axis labels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72))
    figure.add_axes((left / width, bottom / height, (width - left - 10) / width, (height - top - bottom) / height))
    return figure


def name_axes(axes: Axes, x: str, y: str) -> None:
    """Label the axes; the label of y is above it, horizontal."""
    axes.set_xlabel(x, labelpad=2)
    axes.annotate(y, (0, 1), (2, -2), "figure fraction", "offset points", color=QUIET, va="top", annotation_clip=False)
    axes.tick_params(pad=3)


def stroke(x: Sequence[float] | Array, y: Sequence[float] | Array, colour: str, **options: Any) -> Artist:
    """A line; with a ``marker`` and ``linestyle=""``, dots."""
    from matplotlib.lines import Line2D

    return Line2D(x, y, color=colour, **{"markeredgewidth": 0, **options})


def area(polygons: Iterable[Sequence[tuple[float, float]]], colour: str, alpha: float) -> Artist:
    """Polygons as one shape."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    paths = [Path([*polygon, polygon[0]], closed=True) for polygon in polygons]
    return PathPatch(Path.make_compound_path(*paths), facecolor=colour, alpha=alpha, linewidth=0)


def rectangle(left: float, low: float, right: float, high: float) -> list[tuple[float, float]]:
    """A bar's corners."""
    return [(left, low), (right, low), (right, high), (left, high)]


def limits_of(values: Iterable[Array], low: float = -math.inf, high: float = math.inf) -> tuple[float, float]:
    """Limits around all finite values with a margin, clipped to low and high."""
    flat = np.concatenate([np.ravel(array) for array in values])
    flat = np.clip(flat[np.isfinite(flat)], low, high)
    if not len(flat):
        return (0.0, 1.0)
    margin = 0.05 * (flat.max() - flat.min()) or 0.05 * abs(flat.max()) or 0.05
    return max(low, float(flat.min() - margin)), min(high, float(flat.max() + margin))


def floor_of(values: Iterable[Array]) -> float:
    """The lower bound of an axis: 0 if no value is negative."""
    return -math.inf if any(bool((array < 0).any()) for array in values) else 0.0


def title_of(results: Results, place: Place, several: bool) -> str:
    """The title of a block; empty if it is the only one."""
    return results.heading(*place) if several else ""


def percent_axis(axes: Axes) -> None:
    """An axis from 0 to 100."""
    axes.set_xlim(0, 100)
    axes.set_xticks([0, 50, 100])


def shortened(name: str, most: int = 26) -> str:
    """A name, truncated to ``most`` characters."""
    return name if len(name) <= most else name[: most - 1] + "…"


def listing(axes: Axes, names: Sequence[str], limits: tuple[float, float], x: str) -> None:
    """Axes with one row for each name."""
    axes.set_xlim(*limits)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), [shortened(name) for name in names], color=INK)
    axes.tick_params(axis="y", pad=4)
    axes.spines.left.set_visible(False)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(x, labelpad=3)
    axes.tick_params(labelsize=10)


def list_figure(names: Sequence[str], wide: float = 250) -> Figure:
    """A figure with one row for each name."""
    left = 14 + 5.6 * max(len(shortened(name)) for name in names)
    return blank_figure(left + wide, 44 + 17 * len(names), left=left, top=6, bottom=36)
