"""Values that several sections of the page use."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from tutelage.report.tables import format_number as _format_number
from tutelage.studies.reading import Record
from tutelage.studies.results import Results
from tutelage.tasks import Metric


def counted(number: int, noun: str) -> str:
    """A number with its noun."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def distinct(values: Iterable[Any]) -> list[Any]:
    """Each value once, in order."""
    return list(dict.fromkeys(values))


def conditions_and_pairs(results: Results) -> tuple[list[Any], list[Any]]:
    """The conditions and the pairs of networks."""
    return distinct(cell.condition for cell in results.cells), distinct(cell.pair for cell in results.cells)


def settings_text(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values of settings as text."""
    return [(name, value_text(value)) for name, value in settings.items()]


def value_text(value: Any) -> str:
    """A value as JSON; text without quotes."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def format_number(value: float, metric: Metric, sign: str = "") -> str:
    """A number with a minus sign as wide as a plus sign."""
    return _format_number(value, metric, sign).replace("-", "−")


def place_text(results: Results, run: Record) -> str:
    """A run's condition and pair in words."""
    condition = [run[axis] for axis in ("data", "noise", "imbalance", "per_class", "teacher_labels")]
    return results.heading(condition, (run["teacher"], run["student"]))
