"""Pictures of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tutelage.errors import TutelageError, one_line
from tutelage.studies.results import METRICS, PLAIN, Ranks, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ACCENT, _QUIET = "#1f6f8b", "#8a8f98"


def plot_gain_grid(panels: Mapping[str, Sequence[Row]], path: Path) -> None:
    """Gain over the plain student with its interval, a line a method, a panel a comparison, two side by side: a PNG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    shown = {title: [row for row in rows if row.gain is not None] for title, rows in panels.items()}
    shown = {title: rows for title, rows in shown.items() if rows}
    most = max(len(rows) for rows in shown.values())
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        down = (len(shown) + 1) // 2
        figure = Figure(figsize=(10, down * (1.1 + 0.3 * most)), layout="constrained")
        axes = figure.subplots(down, 2, squeeze=False).flatten()
        for axis, (title, rows) in zip(axes, shown.items(), strict=False):
            for place, row in enumerate(rows):
                _draw_gain(axis, place, row)
            axis.axvline(0, color="black", linewidth=0.8)
            axis.set_yticks(range(len(rows)), [row.cell.method for row in rows])
            axis.invert_yaxis()
            axis.set_title(title, loc="left", fontweight="bold", fontsize=10)
            axis.set_xlabel("gain over the plain student, points (95 % interval)")
        for axis in axes[len(shown) :]:
            axis.remove()
        _save(figure, path)


def plot_ranks(ranks: Ranks, path: Path) -> None:
    """Average ranks on a line, the best to the left, as Demsar 2006 draws them: a PNG.

    A bar joins methods whose ranks differ by less than the critical difference: nothing tells those apart.

    Raises:
        TutelageError: fewer than two methods have a rank.
    """
    if ranks.critical_difference is None:
        raise TutelageError(f"ranks of {len(ranks.average)} methods make no picture; two are needed")
    import matplotlib as mpl
    from matplotlib.figure import Figure

    names, places = list(ranks.average), list(ranks.average.values())
    bars = alike(places, ranks.critical_difference)
    left = (len(names) + 1) // 2
    first, gap = 0.9 + 0.28 * len(bars), 0.01 * len(names)
    with mpl.rc_context({"font.size": 10, "text.parse_math": False}):
        figure = Figure(figsize=(9, 1.6 + 0.34 * (first + left)), layout="constrained")
        axis = figure.subplots()
        for number, (name, place) in enumerate(zip(names, places, strict=True)):
            on_left = number < left
            height = first + (number if on_left else len(names) - 1 - number)
            end = 1 - 2 * gap if on_left else len(names) + 2 * gap
            colour = "black" if name == PLAIN else _ACCENT
            axis.plot([place, place, end], [0, height, height], color=colour, linewidth=1)
            axis.text(
                end + (-gap if on_left else gap),
                height,
                f"{name}  {place:.2f}" if on_left else f"{place:.2f}  {name}",
                ha="right" if on_left else "left",
                va="center",
                color=colour,
                fontweight="bold" if name == PLAIN else "normal",
            )
        for number, (low, high) in enumerate(bars):
            height = 0.45 + 0.28 * number
            axis.plot(
                [low - gap / 2, high + gap / 2], [height] * 2, color="black", linewidth=3.5, solid_capstyle="butt"
            )
        end = 1 + min(ranks.critical_difference, len(names) - 1)
        axis.plot([1, end], [-1.1, -1.1], color=_QUIET, linewidth=3, solid_capstyle="butt")
        axis.text(1, -1.3, f"critical difference {ranks.critical_difference:.2f}", va="bottom", color=_QUIET)
        axis.set_xlim(1 - 2 * gap, len(names) + 2 * gap)
        axis.set_ylim(first + left - 0.4, -2)
        axis.spines[["left", "right", "bottom"]].set_visible(False)
        axis.spines["top"].set_position(("data", 0))
        axis.spines["top"].set_bounds(1, len(names))
        axis.xaxis.tick_top()
        axis.set_xticks(range(1, len(names) + 1))
        axis.set_yticks([])
        blocks = "1 block" if ranks.blocks == 1 else f"{ranks.blocks} blocks"
        figure.suptitle(
            f"average rank over {blocks}, {METRICS[ranks.metric].title}", x=0.01, ha="left", fontweight="bold"
        )
        _save(figure, path)


def alike(places: Sequence[float], difference: float) -> list[tuple[float, float]]:
    """The longest stretches of rising average ranks that are not wider than the critical difference, as their ends."""
    found: list[tuple[float, float]] = []
    for low in places:
        high = max(place for place in places if place - low <= difference)
        if high > low and (not found or high > found[-1][1]):
            found.append((low, high))
    return found


def _draw_gain(axis: Axes, place: int, row: Row) -> None:
    """A dot with its interval; quiet where the interval holds 0."""
    gain = row.gain
    if gain is None:
        return
    colour = _ACCENT if gain.low > 0 or gain.high < 0 else _QUIET
    axis.plot([100 * gain.low, 100 * gain.high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
    axis.plot(100 * gain.mean, place, "o", color=colour, markersize=7)


def _save(figure: Figure, path: Path) -> None:
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise TutelageError(f"cannot write {path}: {error.strerror or one_line(error)}") from error
