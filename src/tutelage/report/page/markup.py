"""Pieces of HTML that several parts of the page are made of."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from html import escape
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


def places(results: Results) -> tuple[list[Any], list[Any]]:
    """The conditions and the pairs of networks."""
    return distinct(cell.condition for cell in results.cells), distinct(cell.pair for cell in results.cells)


def listing(items: Iterable[str], kind: str = "plain") -> str:
    """A list of HTML."""
    return f'<ul class="{kind}">{"".join(f"<li>{item}</li>" for item in items)}</ul>'


def settings_of(settings: Mapping[str, Any]) -> str:
    """Settings as code."""
    return " ".join(f"<code>{escape(name)}={escape(value_of(value))}</code>" for name, value in settings.items())


def value_of(value: Any) -> str:
    """A value as it would be written."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def command_of(command: str | None) -> str:
    """A command that can be copied; nothing for a record without one."""
    if command is None:
        return ""
    return (
        f'<span class="command"><code>{escape(command)}</code> '
        '<button type="button" class="copy" aria-label="Copy the command">copy</button></span>'
    )


def format_number(value: float, metric: Metric, sign: str = "") -> str:
    """A number with a minus that is as wide as a plus."""
    return _format_number(value, metric, sign).replace("-", "−")


def error_of(run: Record) -> str:
    """A run's error, if it has one."""
    return f'<span class="error">{escape(run["error"])}</span>' if run["error"] else ""


def where_of(results: Results, run: Record) -> str:
    """A run's condition and pair in words."""
    condition = [run[axis] for axis in ("data", "noise", "imbalance", "per_class", "teacher_labels")]
    return results.heading(condition, (run["teacher"], run["student"]))
