"""The table of the page: a line for each row of the results, with its runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

from tutelage.report.page.values import conditions_and_pairs, counted, distinct, format_number
from tutelage.report.tables import interval_note, mean_interval
from tutelage.studies import PLAIN, TEACHER
from tutelage.studies.metrics import task_metrics
from tutelage.studies.results import Results, Row
from tutelage.tasks import Metric


@dataclass(frozen=True)
class Cell:
    """A cell of the table.

    Attributes:
        value: the number to sort by.
        text: the number as text.
        note: its interval, or how many runs are missing.
        missing: why it has no number.
        strong: whether the text is emphasised.
    """

    value: float | None = None
    text: str = ""
    note: str = ""
    missing: str = ""
    strong: bool = False


@dataclass(frozen=True)
class _Column:
    """A column of numbers: its head, the head's explanation, the cell of a row, and its CSS classes."""

    head: str
    about: str
    cell: Callable[[Row], Cell]
    kind: str = "number"


_COMMON = {"corruption_accuracy": "corrupted", "ood_auroc": "OOD", "seconds": "seconds", "forward_passes": "passes"}
"""Headings of the columns that the table shows for every task."""

_SCREEN_ONLY = ("agreement", "seconds", "forward_passes")
"""Columns omitted on a printed page, which is narrower than a screen; figures or records show them."""


def _heads(results: Results) -> dict[str, str]:
    """Return the headings of the columns beside the main one."""
    titles = {name: metric.title for name, metric in task_metrics(results.task).items() if metric.better is not None}
    return {**(results.task.columns or titles), **_COMMON}


def _columns(results: Results, rows: Sequence[Row], metric: str) -> list[_Column]:
    about, heads = results.metrics[metric], _heads(results)
    unit, points = (", %", ", percentage points") if about.percent else ("", "")
    columns = [
        _Column(
            heads.get(metric, about.title) + unit,
            f"{about.title}: mean over seeds" + _about_interval(results),
            _mean,
        )
    ]
    if any(row.deviation is not None for row in rows):
        columns.append(_Column("sd", "standard deviation over seeds", _deviation))
    if any(row.gain is not None for row in rows):
        columns.append(
            _Column(
                f"gain{points}",
                "mean paired difference to the plain student, with its 95 % interval without Holm's correction",
                _gain,
            )
        )
    if any(row.holm is not None for row in rows):
        columns.append(
            _Column(
                "p (Holm)",
                "p-value of the paired t-test, corrected over the methods of a condition and pair",
                _p,
            )
        )
    if any(row.wins is not None for row in rows):
        columns.append(
            _Column("wins", "seeds on which it is better than the plain student; a tie counts as half", _wins)
        )
    for name, head in heads.items():
        if name != metric and any(run[name] is not None for run in results.runs):
            unit = ", %" if results.metrics[name].percent else ""
            kind = "number screen" if name in _SCREEN_ONLY else "number"
            title = f"{results.metrics[name].title}: mean over seeds"
            columns.append(_Column(head + unit, title, partial(_other, name=name, metric=results.metrics[name]), kind))
    return columns


def _mean(row: Row) -> Cell:
    if row.mean is None:
        return _missing(row) if row.cell.incomplete else Cell()
    interval = mean_interval(row).replace("-", "−")
    return Cell(row.mean.mean, format_number(row.mean.mean, row.metric), interval, strong=True)


def _about_interval(results: Results) -> str:
    return (
        ""
        if interval_note(results)
        else ", ± half of its 95 % interval, or the bounds of an asymmetric interval in brackets"
    )


def _missing(row: Row) -> Cell:
    reasons = "; ".join(f"seed {run['seed']}: {run['error'] or run['status']}" for run in row.cell.incomplete)
    return Cell(missing=reasons, note=f"{len(row.cell.incomplete)} of {len(row.cell.runs)} runs")


def _deviation(row: Row) -> Cell:
    return Cell() if row.deviation is None else Cell(row.deviation, format_number(row.deviation, row.metric))


def _gain(row: Row) -> Cell:
    if row.gain is None:
        return Cell()
    mean = format_number(row.gain.mean, row.metric, "+")
    if math.isnan(row.gain.low):
        return Cell(row.gain.mean, mean, strong=True)
    low, high = (format_number(end, row.metric, "+") for end in (row.gain.low, row.gain.high))
    return Cell(row.gain.mean, mean, f"[{low}, {high}]", strong=True)


def _p(row: Row) -> Cell:
    return Cell() if row.holm is None else Cell(row.holm, "< 0.001" if row.holm < 0.001 else f"{row.holm:.3f}")


def _wins(row: Row) -> Cell:
    return Cell() if row.wins is None else Cell(row.wins, f"{row.wins:g} of {len(row.cell.runs)}")


def _other(row: Row, name: str, metric: Metric) -> Cell:
    values = row.cell.values(name)
    if values is None:
        return Cell(note="missing" if row.cell.incomplete else "")
    return Cell(fmean(values), format_number(fmean(values), metric))


def table(results: Results, rows: Sequence[Row], metric: str) -> dict[str, Any]:
    """The heads and lines of the table, the choices of its filters, and its notes."""
    conditions, pairs = conditions_and_pairs(results)
    columns = _columns(results, rows, metric)
    words: list[tuple[str, Callable[[Row], str]]] = [("method", lambda row: row.cell.method)]
    if len(conditions) > 1:
        words.append(("condition", lambda row: results.label(row.cell.condition)))
    if len(pairs) > 1:
        words.append(("pair", lambda row: f"{row.cell.pair[0]} → {row.cell.pair[1]}"))
    about = results.metrics[metric]
    seeds = counted(len(results.study["seeds"]), "seed")
    return {
        "note": interval_note(results),
        "choices": [(name, distinct(text(row) for row in rows)) for name, text in words],
        "caption": f"{about.heading} and other metrics, mean over {seeds}",
        "heads": [
            *((name, "", "words") for name, _ in words),
            *((column.head, column.about, column.kind) for column in columns),
        ],
        "run_head": about.title + (", %" if about.percent else ""),
        "lines": [
            _line(number, row, [(name, text(row)) for name, text in words], columns, metric)
            for number, row in enumerate(rows)
        ],
    }


def _line(
    number: int, row: Row, words: Sequence[tuple[str, str]], columns: Sequence[_Column], metric: str
) -> dict[str, Any]:
    role = row.cell.method if row.cell.method in (PLAIN, TEACHER) else ""
    values = [run[metric] for run in row.cell.runs]
    return {
        "number": number,
        "kind": " ".join(filter(None, [role, "incomplete" if row.cell.incomplete else ""])),
        "words": words,
        "label": ", ".join(word for _, word in words),
        "cells": [(column.kind, column.cell(row)) for column in columns],
        "runs": [
            (run, "" if value is None else format_number(value, row.metric))
            for run, value in zip(row.cell.runs, values, strict=True)
        ],
    }
