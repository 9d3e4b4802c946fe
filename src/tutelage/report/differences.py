"""Output of the differences between two studies or two runs, as tables or JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tutelage.report.console import print_plain, print_table
from tutelage.report.tables import finite, format_interval
from tutelage.studies.difference import Both, Change, RunDifference, StudyDifference
from tutelage.studies.reading import CONDITION, PAIR
from tutelage.studies.results import Cell


def print_study_difference(difference: StudyDifference, *, as_json: bool = False) -> None:
    """Print the differences B - A of two studies."""
    if as_json:
        _print_json(
            {
                "metric": difference.metric,
                "seeds": list(difference.seeds),
                "setup_changes": _sides(difference.setup_changes),
                "differences": [_line(change) for change in difference.changes],
                "only_a": [_key(cell) for cell in difference.only_a],
                "only_b": [_key(cell) for cell in difference.only_b],
            }
        )
        return
    metric = difference.about
    rows = []
    for change in difference.changes:
        text = (
            f"missing in {change.missing}" if change.difference is None else format_interval(change.difference, metric)
        )
        rows.append((_words(change), change.method, text))
    print_table(
        ("condition", "method", f"{metric.title}{', percentage points' if metric.percent else ''}: B - A"), rows
    )
    n = len(difference.seeds)
    print_plain(f"B - A over {n} common seed{'' if n == 1 else 's'}, paired, with 95 % t intervals")
    for name, (a, b) in difference.setup_changes.items():
        print_plain(f"differs: {name} is {a} in A, {b} in B")
    for side, cells in (("A", difference.only_a), ("B", difference.only_b)):
        for cell in cells:
            print_plain(f"only in {side}: {cell.method}, {_words(cell)}")


def print_run_difference(difference: RunDifference, *, as_json: bool = False) -> None:
    """Print the differences between the configurations and numbers of two runs."""
    if as_json:
        _print_json({"config": _sides(difference.config), "numbers": _sides(difference.numbers)})
        return
    print_table(("field", "A", "B"), [(name, str(a), str(b)) for name, (a, b) in difference.config.items()])
    rows = [
        (name, _number(a), _number(b), "" if a is None or b is None else f"{b - a:+.4g}")
        for name, (a, b) in difference.numbers.items()
    ]
    print_table(("measured", "A", "B", "B - A"), rows)


def _line(change: Change) -> dict[str, Any]:
    gap = change.difference
    ends: dict[str, float | None] = {"difference": None, "low": None, "high": None}
    if gap is not None:
        ends = {"difference": gap.mean, "low": finite(gap.low), "high": finite(gap.high)}
    return {**_key(change), **ends, "missing": change.missing}


def _key(row: Change | Cell) -> dict[str, Any]:
    return {**dict(zip((*CONDITION, *PAIR), (*row.condition, *row.pair), strict=True)), "method": row.method}


def _words(row: Change | Cell) -> str:
    key = _key(row)
    words = [str(key["data"]), *(f"{axis} {key[axis]}" for axis in CONDITION[1:-1] if key[axis] is not None)]
    words += ["teacher on clean labels"] if key["teacher_labels"] == "clean" else []
    return ", ".join([*words, f"{row.pair[0]} teaches {row.pair[1]}"])


def _sides(both: Mapping[str, Both]) -> dict[str, dict[str, Any]]:
    return {name: {"a": a, "b": b} for name, (a, b) in both.items()}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.4f}" if isinstance(value, float) else f"{value:,}"


def _print_json(value: Any) -> None:
    print(json.dumps(value, allow_nan=False, default=str))
