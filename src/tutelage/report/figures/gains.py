"""Gains over the plain student, and average ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tutelage.report.conclusions import significance
from tutelage.report.figures.frame import (
    Block,
    Panel,
    Place,
    Section,
    limits_of,
    list_figure,
    listing,
    stroke,
    title_of,
)
from tutelage.report.svg import ACCENT, INK, PAPER, QUIET, RULE, SECOND, Sheet
from tutelage.studies import PLAIN, TEACHER
from tutelage.studies.results import Results, Row, missing_reason

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes


def gains(results: Results, rows: Sequence[Row], sheet: Sheet) -> Section | None:
    """Gains with their intervals, one panel for each condition and pair."""
    groups: dict[Place, list[Row]] = {}
    for row in rows:
        if row.cell.method not in (TEACHER, PLAIN):
            groups.setdefault((row.cell.condition, row.cell.pair), []).append(row)
    gains = [row.gain for row in rows if row.gain is not None]
    if not gains:
        return None
    metric = rows[0].metric
    share = metric.percent
    scale = 100 if share else 1
    low, high = limits_of([np.zeros(1), *(scale * np.asarray([gain.mean, gain.low, gain.high]) for gain in gains)])
    names = list(dict.fromkeys(row.cell.method for group in groups.values() for row in group))
    figure = list_figure(names)
    unit = "percentage points" if share else metric.title

    def frame(axes: Axes) -> None:
        listing(axes, names, (low, high), f"difference to the plain student, {unit}")
        axes.axvline(0, color=INK, linewidth=0.9)

    def marks(group: Sequence[Row]) -> list[Artist]:
        from matplotlib.text import Text

        artists: list[Artist] = []
        for row in group:
            position = names.index(row.cell.method)
            if row.gain is None:
                reason = missing_reason(row.cell) if row.mean is None else "the plain student is missing"
                artists.append(
                    Text(low, position, f" {reason}", color=SECOND, verticalalignment="center", fontstyle="italic")
                )
                continue
            significant = significance(row) in ("above", "below")
            colour = ACCENT if significant else QUIET
            if math.isfinite(row.gain.low):
                artists.append(
                    stroke([scale * row.gain.low, scale * row.gain.high], [position] * 2, colour, linewidth=2)
                )
            face = {"markerfacecolor": colour if significant else PAPER, "markeredgewidth": 1.6}
            artists.append(stroke([scale * row.gain.mean], [position], colour, marker="o", markersize=6.5, **face))
        return artists

    titles = [title_of(results, key, len(groups) > 1) for key in groups]
    labels = [f"Difference of each method to the plain student{f'; {title}' if title else ''}" for title in titles]
    svgs = sheet.panels(figure, frame, [marks(group) for group in groups.values()], labels)
    better = {"higher": "Right of 0 is better.", "lower": "Left of 0 is better.", None: ""}[metric.better]
    explanation = (
        "Bars: 95 % interval of the mean paired difference, not corrected for multiple comparisons. Filled: "
        "significantly different from 0 after Holm's correction within the panel; hollow: not significant."
        if len(results.study["seeds"]) > 1
        else "One seed allows no interval: none of these differences can be called significant."
    )
    description = f"{metric.heading} of each method minus the plain student's, paired by seed."
    note = f"{description} {better} {explanation}"
    panels = tuple(Panel(title, svg) for title, svg in zip(titles, svgs, strict=True))
    return Section("gains", "Gain over the plain student", note, (Block("", panels),), width=350)


def ranks(results: Results, metric: str, sheet: Sheet) -> Section | None:
    """Average ranks with the critical difference."""
    if results.metrics[metric].better is None or all(
        run[metric] is None for run in results.runs if run["method"] != TEACHER
    ):
        return None
    ranks = results.ranks(metric)
    if ranks.critical_difference is None or ranks.blocks < 2:
        return None
    names = list(ranks.average)
    figure = list_figure(names, wide=330)
    (axes,) = figure.axes
    best = ranks.average[names[0]]
    listing(axes, names, (0.7, len(names) + 0.3), "average rank, 1 is the best")
    edge = min(best + ranks.critical_difference, len(names) + 0.3)
    axes.fill(
        [best, edge, edge, best],
        [-0.5, -0.5, len(names) - 0.5, len(names) - 0.5],
        color=ACCENT,
        alpha=0.13,
        linewidth=0,
    )
    for position, (name, rank) in enumerate(ranks.average.items()):
        axes.plot([0.7, rank], [position, position], color=RULE, linewidth=1)
        axes.plot(rank, position, "o", color=INK if name == PLAIN else ACCENT, markersize=7, markeredgewidth=0)
        axes.annotate(f"{rank:.2f}", (rank, position), (7, 0), textcoords="offset points", va="center")
    note = (
        f"Mean rank over {ranks.blocks} conditions and pairs, by the mean over seeds. Shaded: the critical difference "
        f"of {ranks.critical_difference:.2f} from the best (Nemenyi, 5 %); methods in it are not significantly worse."
    )
    if ranks.p is not None:
        note += f" Friedman's test of equal ranks: p = {ranks.p:.2g}."
    if ranks.unranked:
        note += " Not ranked: " + "; ".join(f"{name} ({reason})" for name, reason in ranks.unranked.items()) + "."
    svg = sheet.drawing(figure, "Average rank of each method with the critical difference from the best")
    return Section("ranks", "Average rank", note, (Block("", (Panel("", svg),)),), width=420)
