"""Curves with bands: training, risk and coverage, corruptions, attacks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tutelage.report.figures.frame import (
    Array,
    Block,
    Panel,
    Section,
    area,
    blank_figure,
    floor_of,
    limits_of,
    name_axes,
    over_seeds,
    percent_axis,
    places,
    stroke,
    title_of,
)
from tutelage.report.svg import ACCENT, INK, QUIET, SECOND, Sheet
from tutelage.report.tables import interval_note
from tutelage.studies import PLAIN, TEACHER
from tutelage.studies.results import Cell, Results, missing_reason

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Line:
    """Means over seeds along an axis, with half of their interval, NaN with fewer than three seeds. Shape (points,).

    Attributes:
        thin: more lines without bands.
        second: a dotted line of another kind.
    """

    x: Array
    mean: Array
    half: Array
    thin: tuple[Array, ...] = ()
    second: Array | None = None


def line_panels(
    sheet: Sheet,
    blocks: Mapping[str, Mapping[str, Line | str]],
    *,
    frame: Callable[[Axes], None] = lambda axes: None,
    x: str,
    y: str,
    high: float = math.inf,
) -> tuple[Block, ...]:
    """One panel for each method; the reason in place of a missing line."""
    lines = [line for block in blocks.values() for line in block.values() if isinstance(line, Line)]
    if not lines:
        return ()
    extent = [
        part
        for line in lines
        for part in (line.mean - np.nan_to_num(line.half), line.mean + np.nan_to_num(line.half), *line.thin)
    ]
    extent += [line.second for line in lines if line.second is not None]
    limits = limits_of(extent, floor_of([line.mean for line in lines]), high)
    across = limits_of([line.x for line in lines])
    figure = blank_figure(200, 142)

    def draw_frame(axes: Axes) -> None:
        from matplotlib.ticker import MaxNLocator

        axes.set_xlim(*across)
        axes.set_ylim(*limits)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=across[1] - across[0] > 4))
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        name_axes(axes, x, y)
        frame(axes)

    marks = []
    labels = []
    for title, block in blocks.items():
        plain = block.get(PLAIN)
        for name, line in block.items():
            if isinstance(line, Line):
                marks.append(_draw_line(line, plain if isinstance(plain, Line) and name != PLAIN else None, limits))
                labels.append(f"{name}: {y} against {x}{f'; {title}' if title else ''}")
    svgs = iter(sheet.panels(figure, draw_frame, marks, labels))
    return tuple(
        Block(
            title,
            tuple(
                Panel(name, next(svgs)) if isinstance(line, Line) else Panel(name, "", line)
                for name, line in block.items()
            ),
        )
        for title, block in blocks.items()
    )


def _draw_line(line: Line, plain: Line | None, limits: tuple[float, float]) -> list[Artist]:
    colour = INK if plain is None else ACCENT
    finite = np.isfinite(line.half)
    low, high = np.clip([line.mean - line.half, line.mean + line.half], *limits)[:, finite]
    artists = []
    if finite.sum() > 1:
        x = line.x[finite]
        artists.append(area([[*zip(x, low, strict=True), *zip(x[::-1], high[::-1], strict=True)]], colour, 0.16))
    artists += [stroke(line.x, thin, QUIET, linewidth=0.5) for thin in line.thin]
    if plain is not None:
        artists.append(stroke(plain.x, plain.mean, INK, linewidth=1.1, dashes=(3.2, 2)))
    if line.second is not None:
        artists.append(stroke(line.x, line.second, SECOND, linewidth=1.4, dashes=(1, 1.2)))
    marker = "o" if len(line.x) <= 8 else ""
    return [*artists, stroke(line.x, line.mean, colour, linewidth=1.7, marker=marker, markersize=4.5)]


def _lines(
    results: Results, line: Callable[[Cell], Line | None], *, teacher: bool = True
) -> dict[str, dict[str, Line | str]]:
    """Compute the lines of all cells, by condition and pair, then by method; groups without any line are omitted."""
    groups = places(results.cells)
    blocks = {}
    for key, cells in groups.items():
        lines = {
            cell.method: line(cell) if not cell.incomplete else None
            for cell in cells
            if teacher or cell.method != TEACHER
        }
        if any(one is not None for one in lines.values()):
            reasons = {cell.method: missing_reason(cell) for cell in cells}
            blocks[title_of(results, key, len(groups) > 1)] = {
                name: one if one is not None else reasons[name] for name, one in lines.items()
            }
    return blocks


def _of_runs(x: Sequence[float] | Array, values: Array, **fields: Any) -> Line:
    mean, half = over_seeds(values)
    return Line(np.asarray(x, dtype=np.float64), mean, half, **fields)


_BANDS = "Bands: 95 % interval of the mean over seeds. Dashed: the plain student."


_NO_BANDS = "{}, so there are no bands. Dashed: the plain student."


def about_bands(results: Results) -> str:
    """The explanation of the bands of a section."""
    no_interval = interval_note(results)
    return _NO_BANDS.format(no_interval) if no_interval else _BANDS


def training(results: Results, sheet: Sheet) -> Section | None:
    """The main metric by epoch, on training batches or, where it is not measured there, on the held-out split."""
    metric, main = results.metrics[results.task.main_metric], results.task.main_metric
    scale, unit = (100, ", %") if metric.percent else (1, "")
    curves = [run["curve"] or {} for run in results.runs]
    trained, held_out = (
        any(value is not None for curve in curves for value in curve.get(f"{part}_{main}") or ())
        for part in ("train", "validation")
    )
    first = f"train_{main}" if trained else f"validation_{main}"

    def line(cell: Cell) -> Line | None:
        curves = [run["curve"] or {} for run in cell.runs]
        if not all(any(one is not None for one in curve.get(first) or ()) for curve in curves):
            return None
        length = min(len(curve["epoch"]) for curve in curves)
        selected = np.unique(np.linspace(0, length - 1, min(length, 60)).astype(int))
        held_out_curves = [curve.get(f"validation_{main}") or [None] for curve in curves] if trained else [[None]]
        second = None
        if all(len(one) >= length and None not in one for one in held_out_curves):
            scores = np.asarray([[one[n] for n in selected] for one in held_out_curves], dtype=np.float64)
            second = scale * scores.mean(0)
        numbers = [[curve[first][n] for n in selected] for curve in curves]  # None in a stage without labels
        values = scale * np.asarray(numbers, dtype=np.float64)
        return _of_runs([curves[0]["epoch"][n] for n in selected], values, second=second)

    y = f"{'training' if trained else 'held-out'} {metric.short_title}{unit}"
    blocks = line_panels(sheet, _lines(results, line), x="epoch", y=y, high=scale if metric.percent else math.inf)
    held = f"{metric.short_title} on the held-out split"
    note = (
        (results.task.training_metric_note if trained else f"{held[0].upper()}{held[1:]} after each epoch.")
        + (f" Dotted: {held}, mean over seeds." if trained and held_out else "")
        + f" {about_bands(results)}"
    )
    return Section("training", "Training curves", note, blocks) if blocks else None


def risk_coverage(results: Results, sheet: Sheet) -> Section | None:
    """The error rate among the most confident predictions."""
    grid = np.linspace(0.05, 1, 39)

    def line(cell: Cell) -> Line | None:
        curves = [run.get("risk_coverage") or {} for run in cell.runs]
        if not all(curve.get("coverage") for curve in curves):
            return None
        risks = [np.interp(grid, curve["coverage"], curve["risk"]) for curve in curves]
        return _of_runs(100 * grid, 100 * np.asarray(risks))

    blocks = line_panels(sheet, _lines(results, line), x="coverage, %", y="error rate, %", high=100, frame=percent_axis)
    note = (
        "The error rate when the network predicts only its most confident share of samples, from a coverage of 5 %. "
        f"Lower is better. {about_bands(results)}"
    )
    return Section("risk", "Risk and coverage", note, blocks) if blocks else None


def corruptions(results: Results, sheet: Sheet) -> Section | None:
    """Accuracy by severity."""

    def line(cell: Cell) -> Line | None:
        if not all(run["corruptions"] for run in cell.runs):
            return None
        kinds = list(cell.runs[0]["corruptions"])
        values = 100 * np.asarray([[run["corruptions"][kind] for kind in kinds] for run in cell.runs], dtype=np.float64)
        thin = tuple(values[:, number].mean(0) for number in range(len(kinds)))
        return _of_runs(range(1, values.shape[2] + 1), values.mean(1), thin=thin)

    blocks = line_panels(sheet, _lines(results, line), x="severity", y="test accuracy, %", high=100)
    kinds = next((list(run["corruptions"]) for run in results.runs if run["corruptions"]), [])
    note = (
        f"Accuracy on corrupted test images at five severities: {', '.join(kind.replace('_', ' ') for kind in kinds)}. "
        f"Thick: the mean over corruptions; thin: each corruption. {about_bands(results)}"
    )
    return Section("corruptions", "Corrupted images", note, blocks) if blocks else None


def pgd(results: Results, sheet: Sheet) -> Section | None:
    """Accuracy by the radius of the attack."""

    def line(cell: Cell) -> Line | None:
        if not all(run["pgd"] for run in cell.runs):
            return None
        radii = sorted(cell.runs[0]["pgd"], key=float)
        values = [[run[results.task.main_metric], *(run["pgd"][radius] for radius in radii)] for run in cell.runs]
        return _of_runs([0.0, *map(float, radii)], 100 * np.asarray(values, dtype=np.float64))

    blocks = line_panels(sheet, _lines(results, line), x="radius", y="test accuracy, %", high=100)
    note = (
        "Accuracy on test images attacked by projected gradient descent (PGD), which changes each pixel by at most the "
        f"radius (pixels are in [0, 1]). {about_bands(results)}"
    )
    return Section("pgd", "Attacked images", note, blocks) if blocks else None


_NORM_NAMES = {"linf": "maximum norm", "l2": "L2 norm", "l1": "L1 norm"}


def attacks(results: Results, sheet: Sheet) -> Section | None:
    """Accuracy by the distance of the nearest adversarial image that any of the attacks has found."""
    blocks: list[Block] = []
    for norm, title in _NORM_NAMES.items():
        lines = _lines(results, lambda cell, norm=norm: _attack_line(cell, norm))  # type: ignore[misc]
        x = f"distance, {title}"
        for block in line_panels(sheet, lines, x=x, y="test accuracy, %", high=100):
            blocks.append(replace(block, title=f"{block.title}, {title}" if block.title else title.capitalize()))
    names = results.study["evaluate"].get("attacks", ())
    refusals: dict[str, dict[str, None]] = {}  # the methods by attack
    for cell in results.cells:
        for name in (name for run in cell.runs for name, share in (run["attacks"] or {}).items() if share is None):
            refusals.setdefault(name, {})[cell.method] = None
    refused = "; ".join(f"{name} of {', '.join(methods)}" for name, methods in refusals.items())
    note = (
        "Accuracy on test images if each is replaced by an adversarial one within a distance, for pixels in [0, 1]. An "
        f"image counts as misclassified if any attack of the study found one ({', '.join(names)}), so that the curves "
        f"are upper bounds. {about_bands(results)}"
    )
    if refused:
        note += f" Refused, since images without a gradient mislead the attack: {refused}."
    return Section("attacks", "Attacked images, worst of all attacks", note, tuple(blocks)) if blocks else None


def _attack_line(cell: Cell, norm: str) -> Line | None:
    """The curve of a norm, up to the first radius at which no run has a correct image left."""
    curves = [(run["attack_curves"] or {}).get(norm) for run in cell.runs]
    if not all(curves):
        return None
    radii = [radius for radius in curves[0] or () if all(radius in (curve or ()) for curve in curves)]
    radii.sort(key=float)
    values = 100 * np.asarray([[(curve or {})[radius] for radius in radii] for curve in curves], dtype=np.float64)
    empty = np.flatnonzero(values.max(0) == 0)
    end = int(empty[0]) + 1 if len(empty) else len(radii)
    return _of_runs([float(radius) for radius in radii[:end]], values[:, :end])
