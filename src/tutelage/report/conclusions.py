"""Sentences about a study, made of its table: none claims more than the corrected intervals allow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from tutelage.studies import PLAIN, TEACHER
from tutelage.studies.comparison import Comparison
from tutelage.studies.results import Results, Row, describe_condition, missing_reason
from tutelage.tasks import Metric

LEVEL = 0.05
"""What an adjusted p-value must be below for a difference to be claimed."""

Significance = Literal["above", "below", "uncorrected", "steady", "unsure", "single", "absent"]


def significance(row: Comparison) -> Significance:
    """What may be said of a method beside the plain student.

    Returns:
        ``above`` or ``below``: told from 0 after Holm's correction, and by the interval too. ``uncorrected``: the
        interval leaves out 0, the corrected p-value is not small enough. ``steady``: all seeds differ by the same, so
        that they do not show how much seeds differ, and a p-value of 0 would be no evidence. ``unsure``: the interval
        holds 0. ``single``: one seed. ``absent``: no gain, because runs are missing or it was not measured.
    """
    if row.gain is None:
        return "absent"
    if row.holm is None:
        return "single"
    low, high = row.gain.low, row.gain.high
    if low <= 0 <= high:
        return "unsure"
    if high - low <= 1e-4 * abs(row.gain.mean):  # equal but for what float32 rounds away
        return "steady"
    if row.holm >= LEVEL:
        return "uncorrected"
    return "above" if low > 0 else "below"


def directions(metric: Metric) -> tuple[str, str]:
    """What a value above and one below the plain student's is called."""
    called = {"higher": ("better than", "worse than"), "lower": ("worse than", "better than"), None: ("above", "below")}
    return called[metric.better]


def conclusion(rows: Sequence[Row]) -> str:
    """What the table of one condition and pair allows to say of the methods beside the plain student.

    Args:
        rows: of one condition and pair, as ``Results.table`` gives them.
    """
    missing = "; ".join(f"{row.cell.method} ({_reason_with_error(row)})" for row in rows if row.cell.incomplete)
    said = [f"Missing: {missing}."] if missing else []
    groups: dict[Significance, list[str]] = {}
    for row in _methods(rows):
        groups.setdefault(significance(row), []).append(row.cell.method)
    compared = sum(row.gain is not None for row in rows)
    if "single" in groups:
        return " ".join([*said, "Not enough seeds: one does not tell how much seeds differ."])
    if not compared:
        return " ".join([*said, "Nothing can be compared with the plain student."])
    above, below = directions(rows[0].metric)
    after = f"after Holm's correction for {_counted(compared, 'comparison')}"
    claims = [
        f"clearly {word} the plain student: {'; '.join(groups[key])}"
        for key, word in (("above", above), ("below", below))
        if key in groups
    ]
    said.append(f"{after[0].upper()}{after[1:]}, {'; '.join(claims) or 'none clearly differs from the plain student'}.")
    if "uncorrected" in groups:
        names = "; ".join(groups["uncorrected"])
        said.append(f"The interval leaves out 0, but the corrected p-value is not below {LEVEL:g}: {names}.")
    if "steady" in groups:
        said.append(
            f"The same difference on every seed, which shows no spread to judge by: {'; '.join(groups['steady'])}."
        )
    if "unsure" in groups:
        rest = len(groups["unsure"])
        said.append(f"For {'all' if rest == compared else 'the other'} {rest} the interval holds 0.")
    return " ".join(said)


def summary(results: Results, metric: str | None = None, interval: str = "t") -> tuple[str, str, str]:
    """A study in three sentences: what was compared, what helped or harmed where, and what could not be told."""
    rows = results.table(metric, interval)
    return _compared(results, rows[0].metric), _found(results, rows), _untold(results, rows)


def _compared(results: Results, metric: Metric) -> str:
    methods = [name for name in results.study["methods"] if name != PLAIN]
    conditions = list(dict.fromkeys(cell.condition for cell in results.cells))
    pairs = list(dict.fromkeys((run["teacher"], run["student"]) for run in results.runs))
    where = f"on {describe_condition(conditions[0])}"
    if len(conditions) > 1:
        where = f"under {len(conditions)} conditions ({'; '.join(results.label(each) for each in conditions)})"
    networks = "; ".join(f"{teacher} teaching {student}" for teacher, student in pairs)
    return (
        f"{_counted(len(methods), 'method')} ({'; '.join(methods)}) {'was' if len(methods) == 1 else 'were'} compared "
        f"with the plain student {where}, {networks}, over "
        f"{_counted(len(results.study['seeds']), 'seed')}, by {metric.title}."
    )


def _found(results: Results, rows: Sequence[Row]) -> str:
    standings = {significance(row) for row in _methods(rows)}
    if standings <= {"absent"}:
        return "No method could be compared with the plain student."
    if "single" in standings:
        return "One seed is not enough to tell any method from the plain student."
    above, below = directions(rows[0].metric)
    parts = []
    for key, word in (("above", above), ("below", below)):
        places: dict[str, list[str]] = {}
        for row in rows:
            if significance(row) == key:
                there = places.setdefault(results.heading(row.cell.condition, row.cell.pair), [])
                there.append(f"{row.cell.method} ({amount(row)})")
        if places:
            named = "; ".join(f"{'; '.join(methods)} with {place}" for place, methods in places.items())
            parts.append(f"clearly {word} the plain student: {named}")
    found = ", and ".join(parts) or "no method clearly differs from the plain student"
    return f"After Holm's correction within each condition and pair, {found}."


def _untold(results: Results, rows: Sequence[Row]) -> str:
    parts = []
    for row in rows:
        if row.cell.incomplete:
            place = results.heading(row.cell.condition, row.cell.pair)
            parts.append(f"{row.cell.method} with {place} is missing ({_reason_with_error(row)})")
    methods = _methods(rows)
    unsure = [row for row in methods if significance(row) not in ("above", "below", "absent")]
    absent = [row for row in methods if significance(row) == "absent"]
    if absent:
        parts.append(f"{_counted(len(absent), 'comparison')} of {len(methods)} could not be made")
    if unsure:
        halves = [(row.gain.high - row.gain.low) / 2 for row in unsure if row.gain and not math.isnan(row.gain.low)]
        wide = f", their intervals being up to ± {_scaled(max(halves), rows[0].metric)}" if halves else ""
        parts.append(f"{len(unsure)} of {_counted(len(methods), 'comparison')} cannot be told from no difference{wide}")
    return f"What could not be told: {'; '.join(parts)}." if parts else "No run is missing and nothing was left untold."


def amount(row: Row) -> str:
    """A row's gain with its sign, in points where the metric is a share; empty without one."""
    return _scaled(row.gain.mean, row.metric, "+") if row.gain else ""


def _scaled(value: float, metric: Metric, sign: str = "") -> str:
    return f"{100 * value:{sign}.2f} points" if metric.percent else f"{value:{sign}.3g}"


def _reason_with_error(row: Row) -> str:
    """Which seeds have no number, with the first error."""
    errors = [run["error"] for run in row.cell.incomplete if run["error"]]
    return missing_reason(row.cell) + (f": {errors[0]}" if errors else "")


def _methods(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.cell.method not in (TEACHER, PLAIN)]


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
