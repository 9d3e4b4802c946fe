"""Sentences about a study, derived from its table; they claim no more than corrected p-values and intervals support."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from tutelage.studies import PLAIN, TEACHER
from tutelage.studies.comparison import Comparison
from tutelage.studies.results import Results, Row, describe_condition, missing_reason
from tutelage.tasks import Metric

LEVEL = 0.05
"""The significance level of adjusted p-values."""

Significance = Literal["above", "below", "uncorrected", "constant", "not_significant", "one_seed", "missing"]


def significance(row: Comparison) -> Significance:
    """Classify the difference of a method to the plain student by its significance.

    Returns:
        ``above`` or ``below``: significant after Holm's correction, and the interval excludes 0. ``uncorrected``: the
        interval excludes 0, but the corrected p-value is too large. ``constant``: the difference is the same for all
        seeds; they show no variation, so a p-value of 0 would be no evidence. ``not_significant``: the interval
        contains 0. ``one_seed``: no interval. ``missing``: no gain, because runs are missing or it was not measured.
    """
    if row.gain is None:
        return "missing"
    if row.holm is None:
        return "one_seed"
    low, high = row.gain.low, row.gain.high
    if low <= 0 <= high:
        return "not_significant"
    if high - low <= 1e-4 * abs(row.gain.mean):  # equal except for rounding in float32
        return "constant"
    if row.holm >= LEVEL:
        return "uncorrected"
    return "above" if low > 0 else "below"


def directions(metric: Metric) -> tuple[str, str]:
    """Return the words for a value above and a value below that of the plain student."""
    words = {"higher": ("better than", "worse than"), "lower": ("worse than", "better than"), None: ("above", "below")}
    return words[metric.better]


def conclusion(rows: Sequence[Row]) -> str:
    """Describe how the methods of one condition and pair differ from the plain student.

    Args:
        rows: the rows of ``Results.table`` of one condition and pair.
    """
    missing = "; ".join(f"{row.cell.method} ({_reason_with_error(row)})" for row in rows if row.cell.incomplete)
    sentences = [f"Missing: {missing}."] if missing else []
    groups: dict[Significance, list[str]] = {}
    for row in _methods(rows):
        groups.setdefault(significance(row), []).append(row.cell.method)
    compared = sum(row.gain is not None for row in rows)
    if "one_seed" in groups:
        return " ".join([*sentences, "Too few seeds: one seed does not show the variation between seeds."])
    if not compared:
        return " ".join([*sentences, "Nothing can be compared with the plain student."])
    above, below = directions(rows[0].metric)
    claims = [
        f"clearly {word} the plain student: {'; '.join(groups[key])}"
        for key, word in (("above", above), ("below", below))
        if key in groups
    ]
    claim = "; ".join(claims) or "none clearly differs from the plain student"
    sentences.append(f"After Holm's correction for {_counted(compared, 'comparison')}, {claim}.")
    if "uncorrected" in groups:
        names = "; ".join(groups["uncorrected"])
        sentences.append(f"The interval excludes 0, but the corrected p-value is not below {LEVEL:g}: {names}.")
    if "constant" in groups:
        sentences.append(
            f"The difference is the same for every seed, so its variation is unknown: {'; '.join(groups['constant'])}."
        )
    if "not_significant" in groups:
        count = len(groups["not_significant"])
        sentences.append(f"For {'all' if count == compared else 'the other'} {count} the interval contains 0.")
    return " ".join(sentences)


def summary(results: Results, metric: str | None = None, interval: str = "t") -> tuple[str, str, str]:
    """Describe a study in three sentences: the comparison, significant differences, and missing or other results."""
    rows = results.table(metric, interval)
    return _compared(results, rows[0].metric), _significant(results, rows), _undecided(results, rows)


def _compared(results: Results, metric: Metric) -> str:
    methods = [name for name in results.study["methods"] if name != PLAIN]
    conditions = list(dict.fromkeys(cell.condition for cell in results.cells))
    pairs = list(dict.fromkeys((run["teacher"], run["student"]) for run in results.runs))
    where = f"on {describe_condition(conditions[0])}"
    if len(conditions) > 1:
        where = (
            f"under {len(conditions)} conditions ({'; '.join(results.label(condition) for condition in conditions)})"
        )
    networks = "; ".join(f"{teacher} teaching {student}" for teacher, student in pairs)
    return (
        f"{_counted(len(methods), 'method')} ({'; '.join(methods)}) {'was' if len(methods) == 1 else 'were'} compared "
        f"with the plain student {where}, {networks}, over "
        f"{_counted(len(results.study['seeds']), 'seed')}, by {metric.title}."
    )


def _significant(results: Results, rows: Sequence[Row]) -> str:
    significances = {significance(row) for row in _methods(rows)}
    if significances <= {"missing"}:
        return "No method could be compared with the plain student."
    if "one_seed" in significances:
        return "One seed is not enough to compare any method with the plain student."
    above, below = directions(rows[0].metric)
    parts = []
    for key, word in (("above", above), ("below", below)):
        groups: dict[str, list[str]] = {}
        for row in rows:
            if significance(row) == key:
                methods = groups.setdefault(results.heading(row.cell.condition, row.cell.pair), [])
                methods.append(f"{row.cell.method} ({gain_text(row)})")
        if groups:
            names = "; ".join(f"{'; '.join(methods)} with {heading}" for heading, methods in groups.items())
            parts.append(f"clearly {word} the plain student: {names}")
    claims = ", and ".join(parts) or "no method clearly differs from the plain student"
    return f"After Holm's correction within each condition and pair, {claims}."


def _undecided(results: Results, rows: Sequence[Row]) -> str:
    parts = []
    for row in rows:
        if row.cell.incomplete:
            heading = results.heading(row.cell.condition, row.cell.pair)
            parts.append(f"{row.cell.method} with {heading} is missing ({_reason_with_error(row)})")
    methods = _methods(rows)
    undecided = [row for row in methods if significance(row) not in ("above", "below", "missing")]
    missing = [row for row in methods if significance(row) == "missing"]
    if missing:
        parts.append(f"{_counted(len(missing), 'comparison')} of {len(methods)} could not be made")
    if undecided:
        halves = [(row.gain.high - row.gain.low) / 2 for row in undecided if row.gain and not math.isnan(row.gain.low)]
        width = f" (intervals of up to ± {_scaled(max(halves), rows[0].metric)})" if halves else ""
        parts.append(
            f"{len(undecided)} of {_counted(len(methods), 'comparison')} are not significantly different from 0{width}"
        )
    return (
        f"Missing or not significant: {'; '.join(parts)}."
        if parts
        else "No run is missing, and every difference is significant."
    )


def gain_text(row: Row) -> str:
    """Return a row's signed gain, in percentage points if the metric is a percentage; empty without a gain."""
    return _scaled(row.gain.mean, row.metric, "+") if row.gain else ""


def _scaled(value: float, metric: Metric, sign: str = "") -> str:
    return f"{100 * value:{sign}.2f} percentage points" if metric.percent else f"{value:{sign}.3g}"


def _reason_with_error(row: Row) -> str:
    """Describe the seeds without a value, and the first error."""
    errors = [run["error"] for run in row.cell.incomplete if run["error"]]
    return missing_reason(row.cell) + (f": {errors[0]}" if errors else "")


def _methods(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.cell.method not in (TEACHER, PLAIN)]


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
