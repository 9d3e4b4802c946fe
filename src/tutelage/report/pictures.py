"""The pictures of a study's page.

Most are small multiples: a panel a method, the method in colour, the plain student beside it as a dashed line. So
nothing has to be told apart by colour, and forty methods are as legible as four. Panels of a section
share their scales.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tutelage.report.svg import ACCENT, INK, PAPER, QUIET, RULE, SECOND, Sheet, style
from tutelage.report.words import standing
from tutelage.studies.results import METRICS, PLAIN, TEACHER, Cell, Record, Results, Row, hole_of

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = np.ndarray[Any, np.dtype[np.float64]]
Place = tuple[tuple[Any, ...], tuple[str, str]]
"""A condition and a pair of networks."""


@dataclass(frozen=True)
class Panel:
    """A picture with its title; of a hole there is only the reason, as the note."""

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
    """Pictures of one kind. ``note`` says what is drawn and what the bands are."""

    key: str
    title: str
    note: str
    blocks: tuple[Block, ...]
    width: int = 200


@dataclass(frozen=True)
class Line:
    """Means over seeds along an axis, with half of their interval, NaN where one seed allows none. Shape (points,).

    Attributes:
        thin: more lines without bands.
        second: a line of its own kind, dotted.
    """

    x: Array
    mean: Array
    half: Array
    thin: tuple[Array, ...] = ()
    second: Array | None = None


def sections(results: Results, rows: Sequence[Row], metric: str, sheet: Sheet) -> list[Section]:
    """All that the results have something for, in the order of the page."""
    with style():
        found = [
            _gains(results, rows, metric, sheet),
            _ranks(results, metric, sheet),
            _along(results, rows, metric, sheet, "noise"),
            _along(results, rows, metric, sheet, "imbalance"),
            _per_class(results, sheet),
            _reliability(results, sheet),
            _risk_coverage(results, sheet),
            _corruptions(results, sheet),
            _pgd(results, sheet),
            _cost(results, rows, metric, sheet),
            _training(results, sheet),
        ]
    return [section for section in found if section is not None]


def places(cells: Iterable[Cell]) -> dict[Place, list[Cell]]:
    """The cells of each condition and pair."""
    found: dict[Place, list[Cell]] = {}
    for cell in cells:
        found.setdefault((cell.condition, cell.pair), []).append(cell)
    return found


def over_seeds(values: Array) -> tuple[Array, Array]:
    """Means, and halves of their 95 % t intervals, of shape (points,), from values (seeds, points)."""
    from scipy import stats

    n = len(values)
    mean = values.mean(0)
    if n == 1:
        return mean, np.full_like(mean, np.nan)
    return mean, stats.t.ppf(0.975, n - 1) * values.std(0, ddof=1) / math.sqrt(n)


# --- frames


def _figure(width: float, height: float, left: float = 30, top: float = 20, bottom: float = 30) -> Figure:
    """A figure of this size in points, whose axes leave room for their names."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72))
    figure.add_axes((left / width, bottom / height, (width - left - 10) / width, (height - top - bottom) / height))
    return figure


def _named(axes: Axes, x: str, y: str) -> None:
    """Names of the axes: y's stands above it, upright."""
    axes.set_xlabel(x, labelpad=2)
    axes.annotate(y, (0, 1), (2, -2), "figure fraction", "offset points", color=QUIET, va="top", annotation_clip=False)
    axes.tick_params(pad=3)


def _stroke(x: Sequence[float] | Array, y: Sequence[float] | Array, colour: str, **more: Any) -> Artist:
    """A line, or with a ``marker`` and ``linestyle`` "" dots."""
    from matplotlib.lines import Line2D

    return Line2D(x, y, color=colour, **{"markeredgewidth": 0, **more})


def _area(polygons: Iterable[Sequence[tuple[float, float]]], colour: str, alpha: float) -> Artist:
    """Polygons as one shape."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    parts = [Path([*polygon, polygon[0]], closed=True) for polygon in polygons]
    return PathPatch(Path.make_compound_path(*parts), facecolor=colour, alpha=alpha, linewidth=0)


def _bar(left: float, low: float, right: float, high: float) -> list[tuple[float, float]]:
    return [(left, low), (right, low), (right, high), (left, high)]


def _limits(values: Iterable[Array], low: float = -math.inf, high: float = math.inf) -> tuple[float, float]:
    """What holds all finite values and a little more, between low and high."""
    found = np.concatenate([np.ravel(one) for one in values])
    found = np.clip(found[np.isfinite(found)], low, high)
    if not len(found):
        return (0.0, 1.0)
    room = 0.05 * (found.max() - found.min()) or 0.05 * abs(found.max()) or 0.05
    return max(low, float(found.min() - room)), min(high, float(found.max() + room))


def _title(results: Results, place: Place, several: bool) -> str:
    return results.heading(*place) if several else ""


# --- lines with bands


def _lines(
    sheet: Sheet,
    blocks: Mapping[str, Mapping[str, Line | str]],
    *,
    frame: Callable[[Axes], None] = lambda axes: None,
    x: str,
    y: str,
    high: float = math.inf,
) -> tuple[Block, ...]:
    """A panel a method; where there is no line, the reason why."""
    lines = [line for block in blocks.values() for line in block.values() if isinstance(line, Line)]
    if not lines:
        return ()
    extent = [
        part
        for line in lines
        for part in (line.mean - np.nan_to_num(line.half), line.mean + np.nan_to_num(line.half), *line.thin)
    ]
    extent += [line.second for line in lines if line.second is not None]
    limits = _limits(extent, 0.0, high)
    across = _limits([line.x for line in lines])
    figure = _figure(200, 142)

    def whole(axes: Axes) -> None:
        from matplotlib.ticker import MaxNLocator

        axes.set_xlim(*across)
        axes.set_ylim(*limits)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=across[1] - across[0] > 4))
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        _named(axes, x, y)
        frame(axes)

    marks = []
    labels = []
    for title, block in blocks.items():
        plain = block.get(PLAIN)
        for name, line in block.items():
            if isinstance(line, Line):
                marks.append(_draw_line(line, plain if isinstance(plain, Line) and name != PLAIN else None, limits))
                labels.append(f"{name}: {y} against {x}{f'; {title}' if title else ''}")
    drawn = iter(sheet.panels(figure, whole, marks, labels))
    return tuple(
        Block(
            title,
            tuple(
                Panel(name, next(drawn)) if isinstance(line, Line) else Panel(name, "", line)
                for name, line in block.items()
            ),
        )
        for title, block in blocks.items()
    )


def _draw_line(line: Line, beside: Line | None, limits: tuple[float, float]) -> list[Artist]:
    colour = INK if beside is None else ACCENT
    there = np.isfinite(line.half)
    low, high = np.clip([line.mean - line.half, line.mean + line.half], *limits)[:, there]
    drawn = []
    if there.sum() > 1:
        x = line.x[there]
        drawn.append(_area([[*zip(x, low, strict=True), *zip(x[::-1], high[::-1], strict=True)]], colour, 0.16))
    drawn += [_stroke(line.x, thin, QUIET, linewidth=0.5) for thin in line.thin]
    if beside is not None:
        drawn.append(_stroke(beside.x, beside.mean, INK, linewidth=1.1, dashes=(3.2, 2)))
    if line.second is not None:
        drawn.append(_stroke(line.x, line.second, SECOND, linewidth=1.4, dashes=(1, 1.2)))
    marker = "o" if len(line.x) <= 8 else ""
    return [*drawn, _stroke(line.x, line.mean, colour, linewidth=1.7, marker=marker, markersize=4.5)]


def _each(
    results: Results, line: Callable[[Cell], Line | None], *, teacher: bool = True
) -> dict[str, dict[str, Line | str]]:
    """The lines of every cell, by condition and pair, then by method. Empty where no cell has one."""
    groups = places(results.cells)
    found = {}
    for place, cells in groups.items():
        lines = {
            cell.method: line(cell) if not cell.holes else None for cell in cells if teacher or cell.method != TEACHER
        }
        if any(one is not None for one in lines.values()):
            reasons = {cell.method: hole_of(cell) for cell in cells}
            found[_title(results, place, len(groups) > 1)] = {
                name: one if one is not None else reasons[name] for name, one in lines.items()
            }
    return found


def _of_runs(x: Sequence[float] | Array, values: Array, **more: Any) -> Line:
    mean, half = over_seeds(values)
    return Line(np.asarray(x, dtype=np.float64), mean, half, **more)


_BANDS = "Bands: 95 % interval of the mean over seeds. Dashed: the plain student."
_ONE_SEED = "One seed allows no interval, so there are no bands. Dashed: the plain student."


def _bands(results: Results) -> str:
    return _BANDS if len(results.study["seeds"]) > 1 else _ONE_SEED


def _training(results: Results, sheet: Sheet) -> Section | None:
    held_out = any(
        value is not None for run in results.runs for value in (run["curve"] or {}).get("validation_accuracy") or ()
    )

    def line(cell: Cell) -> Line | None:
        curves = [run["curve"] for run in cell.runs]
        if not all(curve and any(one is not None for one in curve["train_accuracy"]) for curve in curves):
            return None
        length = min(len(curve["epoch"]) for curve in curves)
        kept = np.unique(np.linspace(0, length - 1, min(length, 60)).astype(int))
        judged = [curve.get("validation_accuracy") or [None] for curve in curves]
        second = None
        if all(len(one) >= length and None not in one for one in judged):
            second = 100 * np.asarray([[one[n] for n in kept] for one in judged], dtype=np.float64).mean(0)
        shares = [[curve["train_accuracy"][n] for n in kept] for curve in curves]  # none in a stage without labels
        values = 100 * np.asarray(shares, dtype=np.float64)
        return _of_runs([curves[0]["epoch"][n] for n in kept], values, second=second)

    blocks = _lines(sheet, _each(results, line), x="epoch", y="training accuracy, %", high=100)
    note = (
        "Share of the training labels, wrong ones included, that the network gives while it trains."
        + (" Dotted: accuracy on the held-out part, mean over seeds." if held_out else "")
        + f" {_bands(results)}"
    )
    return Section("training", "Training curves", note, blocks) if blocks else None


def _risk_coverage(results: Results, sheet: Sheet) -> Section | None:
    grid = np.linspace(0.05, 1, 39)

    def line(cell: Cell) -> Line | None:
        curves = [run["risk_coverage"] for run in cell.runs]
        if not all(curve and curve["coverage"] for curve in curves):
            return None
        risks = [np.interp(grid, curve["coverage"], curve["risk"]) for curve in curves]
        return _of_runs(100 * grid, 100 * np.asarray(risks))

    blocks = _lines(sheet, _each(results, line), x="answered, %, surest first", y="wrong, %", high=100, frame=_percent)
    note = (
        "If the network answers only where it is surest: what share of its answers is wrong, from 5 % answered on. "
        f"Lower is better. {_bands(results)}"
    )
    return Section("risk", "Risk and coverage", note, blocks) if blocks else None


def _corruptions(results: Results, sheet: Sheet) -> Section | None:
    def line(cell: Cell) -> Line | None:
        if not all(run["corruptions"] for run in cell.runs):
            return None
        kinds = list(cell.runs[0]["corruptions"])
        values = 100 * np.asarray([[run["corruptions"][kind] for kind in kinds] for run in cell.runs], dtype=np.float64)
        thin = tuple(values[:, number].mean(0) for number in range(len(kinds)))
        return _of_runs(range(1, values.shape[2] + 1), values.mean(1), thin=thin)

    blocks = _lines(sheet, _each(results, line), x="severity", y="test accuracy, %", high=100)
    kinds = next((list(run["corruptions"]) for run in results.runs if run["corruptions"]), [])
    note = (
        f"Test images made worse at five severities: {', '.join(kind.replace('_', ' ') for kind in kinds)}. Thick: the "
        f"mean over kinds; thin: each kind. {_bands(results)}"
    )
    return Section("corruptions", "Corrupted images", note, blocks) if blocks else None


def _pgd(results: Results, sheet: Sheet) -> Section | None:
    def line(cell: Cell) -> Line | None:
        if not all(run["pgd"] for run in cell.runs):
            return None
        radii = sorted(cell.runs[0]["pgd"], key=float)
        values = [[run["accuracy"], *(run["pgd"][radius] for radius in radii)] for run in cell.runs]
        return _of_runs([0.0, *map(float, radii)], 100 * np.asarray(values, dtype=np.float64))

    blocks = _lines(sheet, _each(results, line), x="radius", y="test accuracy, %", high=100)
    note = (
        "Test images moved against the network by projected gradient descent, each pixel by the radius at most (pixels "
        f"lie in [0, 1]). {_bands(results)}"
    )
    return Section("pgd", "Attacked images", note, blocks) if blocks else None


def _percent(axes: Axes) -> None:
    axes.set_xlim(0, 100)
    axes.set_xticks([0, 50, 100])


# --- accuracy along an axis of conditions

# What a kind is called; the level at which it changes nothing, if there is one; whether levels are factors.
_KINDS: Mapping[str, Mapping[str, tuple[str, float | None, bool]]] = {
    "noise": {
        "symmetric": ("share of labels made another class", 0, False),
        "uniform": ("share of labels drawn anew", 0, False),
        "pair": ("share of labels made the next class", 0, False),
        "instance": ("share of wrong labels, likelier on some images", 0, False),
        "missing": ("share of labels missing", 0, False),
    },
    "imbalance": {
        "powerlaw": ("power law's gamma; harder to the right", None, False),
        "longtail": ("smallest class / largest; harder to the right", 1, True),
        "step": ("rare classes / others; harder to the right", 1, True),
    },
}
_AXES = {"noise": "label noise", "imbalance": "class imbalance"}


def _level(axis: str, value: str) -> tuple[str, float] | None:
    """The kind of a condition and its level; ``None`` where it has no number: labels from a file, say."""
    kind, _, level = value.rpartition(":")
    try:
        number = float(level)
    except ValueError:
        return None
    kind = kind or "symmetric"
    return (kind, number) if kind.partition(":")[0] in _KINDS[axis] else None


def _along(results: Results, rows: Sequence[Row], metric: str, sheet: Sheet, axis: str) -> Section | None:
    """A metric against the level of an axis, all else equal. Only of kinds with two levels or more."""
    at = ("data", "noise", "imbalance").index(axis)
    groups: dict[tuple[Any, ...], dict[tuple[str, Any], Row]] = {}
    for row in rows:
        condition, pair = row.cell.condition, row.cell.pair
        others = (condition[:at], condition[at + 1 :], pair)
        groups.setdefault(others, {})[row.cell.method, condition[at]] = row
    values = list(dict.fromkeys(row.cell.condition[at] for row in rows))
    kinds = dict.fromkeys(found[0] for value in values if value is not None and (found := _level(axis, value)))
    share = METRICS[metric].share
    scale = 100 if share else 1
    blocks: list[Block] = []
    for kind in kinds:
        words, neutral, factors = _KINDS[axis][kind.partition(":")[0]]
        levels = {
            value: found[1]
            for value in values
            if value is not None and (found := _level(axis, value)) and found[0] == kind
        }
        if None in values and neutral is not None:
            levels = {None: float(neutral), **levels}
        levels = dict(sorted(levels.items(), key=lambda entry: entry[1]))
        if len(levels) < 2:
            continue
        place = np.log10(list(levels.values())) if factors else np.asarray(list(levels.values()))
        place = -place if axis == "imbalance" else place
        lines: dict[str, dict[str, Line | str]] = {}
        for others, group in groups.items():
            title = _others(results, others, at, levels, len(groups) > 1)
            for method in dict.fromkeys(name for name, _ in group):
                line = _of_rows(place, [group.get((method, value)) for value in levels], scale)
                lines.setdefault(", ".join(filter(None, (title, kind if len(kinds) > 1 else ""))), {})[method] = line
        frame = partial(_ticks, places=place, names=[f"{level:g}" for level in levels.values()])
        name = METRICS[metric].title + (", %" if share else "")
        blocks += _lines(sheet, lines, frame=frame, x=words, y=name, high=scale if share else math.inf)
    note = f"How the {METRICS[metric].title} changes with {_AXES[axis]}, all else equal. {_bands(results)}"
    title = f"{METRICS[metric].title.capitalize()} against {_AXES[axis]}"
    return Section(axis, title, note, tuple(blocks)) if blocks else None


def _ticks(axes: Axes, places: Array, names: Sequence[str]) -> None:
    axes.set_xticks(places, names)


def _of_rows(x: Array, rows: Sequence[Row | None], scale: float) -> Line | str:
    """A line through the means of rows; the reason where one has none."""
    means = [row.mean if row is not None else None for row in rows]
    if None in means:
        return next((hole_of(row.cell) for row in rows if row is not None and row.mean is None), "not measured")
    mean = scale * np.asarray([one.mean for one in means if one], dtype=np.float64)
    return Line(x, mean, scale * np.asarray([one.high for one in means if one], dtype=np.float64) - mean)


def _others(results: Results, others: tuple[Any, ...], at: int, levels: Mapping[Any, float], several: bool) -> str:
    """What the other axes are at, in words."""
    if not several:
        return ""
    before, after, pair = others
    with_, without = (results.heading((*before, level, *after), pair) for level in list(levels)[:2])
    # The axis itself is the part that changes with its level.
    return ", ".join(a for a, b in zip(with_.split(", "), without.split(", "), strict=True) if a == b)


# --- gains and ranks


def _short(name: str, most: int = 26) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _listing(axes: Axes, names: Sequence[str], limits: tuple[float, float], x: str) -> None:
    """A frame with a line a name."""
    axes.set_xlim(*limits)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), [_short(name) for name in names], color=INK)
    axes.tick_params(axis="y", pad=4)
    axes.spines.left.set_visible(False)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(x, labelpad=3)
    axes.tick_params(labelsize=10)


def _list_figure(names: Sequence[str], wide: float = 250) -> Figure:
    left = 14 + 5.6 * max(len(_short(name)) for name in names)
    return _figure(left + wide, 44 + 17 * len(names), left=left, top=6, bottom=36)


def _gains(results: Results, rows: Sequence[Row], metric: str, sheet: Sheet) -> Section | None:
    groups: dict[Place, list[Row]] = {}
    for row in rows:
        if row.cell.method not in (TEACHER, PLAIN):
            groups.setdefault((row.cell.condition, row.cell.pair), []).append(row)
    gains = [row.gain for row in rows if row.gain is not None]
    if not gains:
        return None
    share = METRICS[metric].share
    scale = 100 if share else 1
    low, high = _limits([np.zeros(1), *(scale * np.asarray([gain.mean, gain.low, gain.high]) for gain in gains)])
    names = list(dict.fromkeys(row.cell.method for group in groups.values() for row in group))
    figure = _list_figure(names)
    unit = "points" if share else METRICS[metric].title

    def frame(axes: Axes) -> None:
        _listing(axes, names, (low, high), f"difference to the plain student, {unit}")
        axes.axvline(0, color=INK, linewidth=0.9)

    def marks(group: Sequence[Row]) -> list[Artist]:
        from matplotlib.text import Text

        drawn: list[Artist] = []
        for row in group:
            place = names.index(row.cell.method)
            if row.gain is None:
                why = hole_of(row.cell) if row.mean is None else "the plain student has a hole"
                drawn.append(Text(low, place, f" {why}", color=SECOND, verticalalignment="center", fontstyle="italic"))
                continue
            clear = standing(row) in ("above", "below")
            colour = ACCENT if clear else QUIET
            if math.isfinite(row.gain.low):
                drawn.append(_stroke([scale * row.gain.low, scale * row.gain.high], [place] * 2, colour, linewidth=2))
            face = {"markerfacecolor": colour if clear else PAPER, "markeredgewidth": 1.6}
            drawn.append(_stroke([scale * row.gain.mean], [place], colour, marker="o", markersize=6.5, **face))
        return drawn

    titles = [_title(results, place, len(groups) > 1) for place in groups]
    labels = [f"Difference of each method to the plain student{f'; {title}' if title else ''}" for title in titles]
    drawn = sheet.panels(figure, frame, [marks(group) for group in groups.values()], labels)
    better = {"higher": "Right of 0 is better.", "lower": "Left of 0 is better.", None: ""}[METRICS[metric].better]
    said = (
        "Bars: 95 % interval of the mean paired difference, not adjusted for comparing many methods. Filled: clearly "
        "differs also after Holm's correction within its panel; hollow: not shown to differ."
        if len(results.study["seeds"]) > 1
        else "One seed allows no interval: none of these differences is shown to exist."
    )
    what = f"{METRICS[metric].title.capitalize()} of each method minus the plain student's, paired by seed."
    note = f"{what} {better} {said}"
    panels = tuple(Panel(title, svg) for title, svg in zip(titles, drawn, strict=True))
    return Section("gains", "Gain over the plain student", note, (Block("", panels),), width=350)


def _ranks(results: Results, metric: str, sheet: Sheet) -> Section | None:
    if METRICS[metric].better is None or all(run[metric] is None for run in results.runs if run["method"] != TEACHER):
        return None
    ranks = results.ranks(metric)
    if ranks.critical_difference is None or ranks.blocks < 2:
        return None
    names = list(ranks.average)
    figure = _list_figure(names, wide=330)
    (axes,) = figure.axes
    best = ranks.average[names[0]]
    _listing(axes, names, (0.7, len(names) + 0.3), "average rank, 1 is the best")
    edge = min(best + ranks.critical_difference, len(names) + 0.3)
    axes.fill(
        [best, edge, edge, best],
        [-0.5, -0.5, len(names) - 0.5, len(names) - 0.5],
        color=ACCENT,
        alpha=0.13,
        linewidth=0,
    )
    for place, (name, rank) in enumerate(ranks.average.items()):
        axes.plot([0.7, rank], [place, place], color=RULE, linewidth=1)
        axes.plot(rank, place, "o", color=INK if name == PLAIN else ACCENT, markersize=7, markeredgewidth=0)
        axes.annotate(f"{rank:.2f}", (rank, place), (7, 0), textcoords="offset points", va="center")
    note = (
        f"Mean rank over {ranks.blocks} conditions and pairs, by the mean over seeds. Shaded: the critical difference "
        f"of {ranks.critical_difference:.2f} from the best (Nemenyi, 5 %); whoever lies in it is not shown to be worse."
    )
    if ranks.p is not None:
        note += f" Friedman's test that all are alike: p = {ranks.p:.2g}."
    if ranks.unranked:
        note += " Without a rank: " + "; ".join(f"{name} ({why})" for name, why in ranks.unranked.items()) + "."
    svg = sheet.drawing(figure, "Average rank of each method with the critical difference from the best")
    return Section("ranks", "Average rank", note, (Block("", (Panel("", svg),)),), width=420)


# --- classes and calibration


def _per_class(results: Results, sheet: Sheet) -> Section | None:
    groups = places(results.cells)
    blocks = []
    for place, cells in groups.items():
        whole = {cell.method: cell for cell in cells if all(run["per_class_accuracy"] for run in cell.runs)}
        if not whole:
            continue
        means = {name: _class_means(cell.runs) for name, cell in whole.items()}
        classes = list(next(iter(means.values())))
        step = 11.5 if len(classes) <= 24 else max(2.2, 260 / len(classes))
        left = 12 + 5.2 * max(len(_short(name, 12)) for name in classes) if len(classes) <= 24 else 12
        figure = _figure(200, 34 + step * len(classes), left=left, top=4, bottom=30)
        frame = partial(_class_frame, classes=classes)
        plain = means.get(PLAIN)
        marks = [_draw_classes(mean, plain if name != PLAIN else None) for name, mean in means.items()]
        title = _title(results, place, len(groups) > 1)
        labels = [f"{name}: test accuracy of each class{f'; {title}' if title else ''}" for name in means]
        drawn = dict(zip(means, sheet.panels(figure, frame, marks, labels), strict=True))
        panels = []
        for cell in cells:
            if cell.method not in drawn:
                panels.append(Panel(cell.method, "", hole_of(cell)))
                continue
            worst = min(means[cell.method], key=lambda name: means[cell.method][name])
            said = f"worst: {_short(worst, 12)}, {100 * means[cell.method][worst]:.1f}\u00a0%"
            panels.append(Panel(cell.method, drawn[cell.method], said))
        blocks.append(Block(title, tuple(panels)))
    note = (
        "Test accuracy of each class, mean over seeds; no intervals. The worst class is outlined and named. Strokes: "
        "the plain student."
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
    named = len(classes) <= 24
    axes.set_yticks(range(len(classes)) if named else [], [_short(name, 12) for name in classes] if named else [])
    axes.grid(visible=False, axis="y")
    axes.spines.left.set_visible(False)
    axes.tick_params(pad=3)
    axes.set_xlabel("accuracy, %" if named else f"accuracy, %; {len(classes)} classes", labelpad=2)


def _draw_classes(mean: Mapping[str, float], beside: Mapping[str, float] | None) -> list[Artist]:
    worst = list(mean).index(min(mean, key=lambda name: mean[name]))
    bars = [_bar(0, place - 0.36, 100 * value, place + 0.36) for place, value in enumerate(mean.values())]
    bad = bars.pop(worst)
    drawn = [_area(bars, ACCENT, 0.5)] if bars else []
    x, y = zip(*bad, bad[0], strict=True)
    drawn += [_area([bad], SECOND, 0.3), _stroke(x, y, SECOND, linewidth=1.3)]
    if beside is not None:
        across = [part for name in mean for part in (*[100 * beside.get(name, math.nan)] * 2, math.nan)]
        down = [part for place in range(len(mean)) for part in (place - 0.45, place + 0.45, math.nan)]
        drawn.append(_stroke(across, down, INK, linewidth=1.3))
    return drawn


def _reliability(results: Results, sheet: Sheet) -> Section | None:
    groups = places(results.cells)
    found = []
    for place, cells in groups.items():
        bins = {cell.method: _pool(cell.runs) for cell in cells if all(run["reliability"] for run in cell.runs)}
        if bins:
            found.append((_title(results, place, len(groups) > 1), cells, bins))
    if not found:
        return None

    def frame(axes: Axes) -> None:
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 100)
        axes.set_xticks([0, 50, 100])
        axes.set_yticks([0, 50, 100])
        axes.plot([0, 100], [0, 100], color=QUIET, linewidth=0.8)
        _named(axes, "confidence, %", "right, %")

    marks = [
        _draw_reliability(one, bins.get(PLAIN) if name != PLAIN else None)
        for _, _, bins in found
        for name, one in bins.items()
    ]
    labels = [
        f"{name}: reliability diagram{f'; {title}' if title else ''}" for title, _, bins in found for name in bins
    ]
    drawn = iter(sheet.panels(_figure(170, 172), frame, marks, labels))
    blocks = []
    for title, cells, bins in found:
        panels = []
        for cell in cells:
            ece = cell.values("ece")
            said = hole_of(cell) if cell.method not in bins else f"ECE {np.mean(ece):.3f}" if ece is not None else ""
            panels.append(Panel(cell.method, next(drawn) if cell.method in bins else "", said))
        blocks.append(Block(title, tuple(panels)))
    note = (
        "What share of answers is right at each confidence, the samples of all seeds pooled; no intervals. On the "
        "diagonal the network is as right as it is sure; below it, too sure. Grey columns: where its samples lie. "
        "Dashed: the plain student. ECE: expected calibration error, mean over seeds."
    )
    return Section("reliability", "Calibration", note, tuple(blocks), width=170)


def _pool(runs: Sequence[Record]) -> tuple[Array, Array, Array]:
    """Counts, accuracies and confidences of the bins of several runs together; empty bins are left out."""
    count, accuracy, confidence = (
        np.asarray([[value or 0 for value in run["reliability"][name]] for run in runs], dtype=np.float64)
        for name in ("count", "accuracy", "confidence")
    )
    total = count.sum(0)
    there = total > 0
    mean = [(count * part).sum(0)[there] / total[there] for part in (accuracy, confidence)]
    return total[there] / total.sum(), 100 * mean[0], 100 * mean[1]


def _draw_reliability(bins: tuple[Array, Array, Array], beside: tuple[Array, Array, Array] | None) -> list[Artist]:
    count, accuracy, confidence = bins
    columns = [
        _bar(max(0, at - 2.4), 0, min(100, at + 2.4), 30 * share / count.max())
        for at, share in zip(confidence, count, strict=True)
    ]
    drawn = [_area(columns, QUIET, 0.3)]
    if beside is not None:
        drawn.append(_stroke(beside[2], beside[1], INK, linewidth=1.1, dashes=(3.2, 2)))
    colour = INK if beside is None else ACCENT
    return [*drawn, _stroke(confidence, accuracy, colour, linewidth=1.5, marker="o", markersize=3.6)]


# --- cost


def _cost(results: Results, rows: Sequence[Row], metric: str, sheet: Sheet) -> Section | None:
    groups: dict[Place, list[Row]] = {}
    for row in rows:
        if row.mean is not None:
            groups.setdefault((row.cell.condition, row.cell.pair), []).append(row)
    blocks = []
    for place, group in groups.items():
        title = _title(results, place, len(groups) > 1)
        panels = [
            Panel("", svg)
            for cost, words in (("seconds", "training time, s"), ("forward_passes", "forward passes of training"))
            if (svg := _scatter(sheet, group, metric, cost, words, title))
        ]
        if panels:
            blocks.append(Block(title, tuple(panels)))
    many = any(len(group) > _LABELLED for group in groups.values())
    note = (
        "Up and to the left is better. Means over seeds; "
        + ("bars: 95 % interval. " if len(results.study["seeds"]) > 1 else "one seed allows no interval. ")
        + "Square: plain; diamond: the teacher. Seconds were taken on whatever machine ran the study and are only as "
        "comparable as it was quiet; of several networks trained together, all count."
        + (" Of many methods, those are named that none beats at a lower cost; the table has them all." if many else "")
    )
    return Section("cost", f"Cost against {METRICS[metric].title}", note, tuple(blocks), width=380) if blocks else None


_LABELLED = 14


def _scatter(sheet: Sheet, group: Sequence[Row], metric: str, cost: str, words: str, title: str) -> str:
    """One metric against one cost; empty where the cost was not measured."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    points = [
        (row.cell.method, float(np.mean(values)), row.mean)
        for row in group
        if row.mean is not None and (values := row.cell.values(cost)) is not None
    ]
    if not points:
        return ""
    scale = 100 if METRICS[metric].share else 1
    figure = _figure(380, 270, left=38, top=24, bottom=36)
    (axes,) = figure.axes
    xs = np.asarray([x for _, x, _ in points])
    ys = scale * np.asarray([mean.mean for *_, mean in points])
    bars = [scale * np.asarray([mean.low, mean.high]) for *_, mean in points]
    low, high = _limits([xs, np.zeros(1)])
    axes.set_xlim(max(0, low), high + 0.12 * (high - low))
    axes.set_ylim(*_limits([ys, *bars], 0, scale if scale == 100 else math.inf))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    _named(axes, words, METRICS[metric].title + (", %" if scale == 100 else ""))
    for x, bar in zip(xs, bars, strict=True):
        axes.add_artist(_stroke([x, x], np.clip(bar, *axes.get_ylim()), QUIET, linewidth=1, alpha=0.7))
    for (name, x, _), y in zip(points, ys, strict=True):
        marker = {PLAIN: "s", TEACHER: "D"}.get(name, "o")
        colour = {PLAIN: INK, TEACHER: SECOND}.get(name, ACCENT)
        edge = {"markeredgecolor": PAPER, "markeredgewidth": 0.8}
        axes.add_artist(_stroke([x], [y], colour, marker=marker, markersize=6.5, **edge))
    names = [name for name, *_ in points]
    _label(axes, names, xs, ys, _front(names, xs, ys, METRICS[metric].better))
    return sheet.drawing(figure, f"{METRICS[metric].title} against {words}{f'; {title}' if title else ''}")


def _front(names: Sequence[str], xs: Array, ys: Array, better: str | None) -> list[int]:
    """Whom to name: all of a few; of many, the plain student, the teacher and those whom none beats at a lower cost."""
    if len(names) <= _LABELLED:
        return list(range(len(names)))
    good = ys if better == "higher" else -ys
    return [
        number
        for number, name in enumerate(names)
        if name in (PLAIN, TEACHER) or not ((xs <= xs[number]) & (good > good[number])).any()
    ]


def _label(axes: Axes, names: Sequence[str], xs: Array, ys: Array, chosen: Sequence[int]) -> None:
    """Names beside their points, where they cover no other point or name, with a line to it if need be; or none."""
    spots = axes.transData.transform(np.stack([xs, ys], 1)) * 72 / axes.figure.dpi
    frame = axes.bbox.bounds
    bottom, top = (frame[1] * 72 / axes.figure.dpi, (frame[1] + frame[3]) * 72 / axes.figure.dpi)
    right = (frame[0] + frame[2]) * 72 / axes.figure.dpi + 8
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in spots]
    for number in sorted(chosen, key=lambda one: -spots[one][1]):
        x, y = spots[number]
        name = _short(names[number], 18)
        wide = 5.4 * len(name)
        tries = [(7.0, 0.0), (-7.0 - wide, 0.0)]
        tries += [
            (sideways, away * step)
            for step in (11, 20, 29, 38, 47)
            for away in (1, -1)
            for sideways in (8.0, -8.0 - wide)
        ]
        for dx, dy in tries:
            box = (x + dx, y + dy - 5, x + dx + wide, y + dy + 5)
            inside = box[0] > frame[0] * 72 / axes.figure.dpi and box[2] < right and bottom < box[1] and box[3] < top
            if inside and not any(_overlap(box, other) for other in taken):
                break
        else:
            continue
        taken.append(box)
        arrow = {"arrowstyle": "-", "color": QUIET, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4} if dy else None
        axes.annotate(
            name, (xs[number], ys[number]), (dx, dy), textcoords="offset points", va="center", fontsize=10,
            arrowprops=arrow,
        )  # fmt: skip


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
