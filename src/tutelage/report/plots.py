"""Pictures of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tutelage.errors import TutelageError, one_line
from tutelage.studies.compare import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ACCENT, _QUIET = "#1f6f8b", "#8a8f98"


def plot_gains(rows: Sequence[Row], path: Path, title: str) -> None:
    """Gain over the plain student with its interval, and the wrong labels memorised, a line a method: a PNG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(9, 1.6 + 0.42 * len(rows)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        shown = [row for row in rows if row.gain is not None]
        places = range(len(shown))
        for place, row in zip(places, shown, strict=True):
            _draw_gain(left, place, row)
            if row.memorised is not None:
                right.barh(place, 100 * row.memorised.mean, height=0.55, color=_QUIET)
        left.axvline(0, color="black", linewidth=0.8)
        left.set_yticks(list(places), [row.method for row in shown])
        left.invert_yaxis()
        left.set_xlabel("gain over the plain student, points (95 % interval)")
        plain = next((row for row in rows if row.gain is None), None)
        if plain is not None and plain.memorised is not None:
            right.axvline(100 * plain.memorised.mean, color="black", linewidth=0.8, linestyle="--")
            right.text(100 * plain.memorised.mean, -0.62, "plain", ha="center", va="bottom", fontsize=9)
        right.set_xlabel("wrong labels memorised, %")
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
        _save(figure, path)


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
            axis.set_yticks(range(len(rows)), [row.method for row in rows])
            axis.invert_yaxis()
            axis.set_title(title, loc="left", fontweight="bold", fontsize=10)
            axis.set_xlabel("gain over the plain student, points (95 % interval)")
        for axis in axes[len(shown) :]:
            axis.remove()
        _save(figure, path)


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
