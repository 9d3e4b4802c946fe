"""Pictures of results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tutelage.errors import TutelageError, one_line
from tutelage.studies.compare import Row

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
            gain = row.gain
            if gain is None:
                continue
            clear = gain.low > 0 or gain.high < 0  # an interval that holds 0 is drawn quietly
            colour = _ACCENT if clear else _QUIET
            left.plot(
                [100 * gain.low, 100 * gain.high],
                [place, place],
                color=colour,
                linewidth=2,
                solid_capstyle="butt",
            )
            left.plot(100 * gain.mean, place, "o", color=colour, markersize=7)
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
        try:
            figure.savefig(path, dpi=150)
        except OSError as error:
            raise TutelageError(f"cannot write {path}: {error.strerror or one_line(error)}") from error
