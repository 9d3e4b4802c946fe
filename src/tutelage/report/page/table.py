"""The table: a line a row of the results, with the runs behind it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from statistics import fmean

from tutelage.report.page.markup import command_of, counted, distinct, error_of, format_number, places
from tutelage.report.tables import interval_note, mean_interval
from tutelage.studies import PLAIN, TEACHER
from tutelage.studies.metrics import task_metrics
from tutelage.studies.reading import Record
from tutelage.studies.results import Results, Row
from tutelage.tasks import Metric


@dataclass(frozen=True)
class _Column:
    """A column of numbers: its head, what the head means, a cell's number to sort by and its text, and its class."""

    head: str
    about: str
    cell: Callable[[Row], tuple[float | None, str]]
    kind: str = "number"


_COMMON = {"corruption_accuracy": "corrupted", "ood_auroc": "OOD", "seconds": "seconds", "forward_passes": "passes"}
"""Heads of the numbers that the table shows whatever the task."""

_DRAWN = ("agreement", "seconds", "forward_passes")
"""What a printed page, which is not as wide as a screen, leaves to the pictures or to the records."""


def _heads(results: Results) -> dict[str, str]:
    """The heads of the numbers that the table shows beside the one it is about."""
    own = {name: metric.title for name, metric in task_metrics(results.task).items() if metric.better is not None}
    return {**(results.task.columns or own), **_COMMON}


def _columns(results: Results, rows: Sequence[Row], metric: str) -> list[_Column]:
    about, heads = results.metrics[metric], _heads(results)
    unit, points = (", %", ", points") if about.percent else ("", "")
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
                "mean paired difference to the plain student and its 95 % interval, not adjusted",
                _gain,
            )
        )
    if any(row.holm is not None for row in rows):
        columns.append(
            _Column("p (Holm)", "paired t-test, adjusted for the methods of the same condition and pair", _p)
        )
    if any(row.wins is not None for row in rows):
        columns.append(_Column("wins", "seeds on which it is better than the plain student, ties counting half", _wins))
    for name, head in heads.items():
        if name != metric and any(run[name] is not None for run in results.runs):
            unit = ", %" if results.metrics[name].percent else ""
            kind = "number screen" if name in _DRAWN else "number"
            title = f"{results.metrics[name].title}: mean over seeds"
            columns.append(_Column(head + unit, title, partial(_more, name=name, metric=results.metrics[name]), kind))
    return columns


def _mean(row: Row) -> tuple[float | None, str]:
    if row.mean is None:
        return None, _missing(row) if row.cell.incomplete else ""
    interval = mean_interval(row).replace("-", "−")
    return row.mean.mean, f"<b>{format_number(row.mean.mean, row.metric)}</b>" + (
        f' <span class="quiet">{interval}</span>' if interval else ""
    )


def _about_interval(results: Results) -> str:
    return (
        ""
        if interval_note(results)
        else ", after ± half of its 95 % interval, or in brackets the ends of an uneven one"
    )


def _missing(row: Row) -> str:
    why = "; ".join(f"seed {run['seed']}: {run['error'] or run['status']}" for run in row.cell.incomplete)
    return (
        f'<abbr class="missing" title="{escape(why)}">missing</abbr> '
        f'<span class="quiet">{len(row.cell.incomplete)} of {len(row.cell.runs)} runs</span>'
    )


def _deviation(row: Row) -> tuple[float | None, str]:
    return row.deviation, "" if row.deviation is None else format_number(row.deviation, row.metric)


def _gain(row: Row) -> tuple[float | None, str]:
    if row.gain is None:
        return None, ""
    mean = format_number(row.gain.mean, row.metric, "+")
    if math.isnan(row.gain.low):
        return row.gain.mean, f"<b>{mean}</b>"
    low, high = (format_number(end, row.metric, "+") for end in (row.gain.low, row.gain.high))
    return row.gain.mean, f'<b>{mean}</b> <span class="quiet">[{low}, {high}]</span>'


def _p(row: Row) -> tuple[float | None, str]:
    if row.holm is None:
        return None, ""
    return row.holm, "&lt; 0.001" if row.holm < 0.001 else f"{row.holm:.3f}"


def _wins(row: Row) -> tuple[float | None, str]:
    return row.wins, "" if row.wins is None else f"{row.wins:g} of {len(row.cell.runs)}"


def _more(row: Row, name: str, metric: Metric) -> tuple[float | None, str]:
    values = row.cell.values(name)
    if values is None:
        return None, '<span class="quiet">missing</span>' if row.cell.incomplete else ""
    return fmean(values), format_number(fmean(values), metric)


def table(results: Results, rows: Sequence[Row], metric: str) -> str:
    """The whole table with its controls."""
    conditions, pairs = places(results)
    columns = _columns(results, rows, metric)
    words: list[tuple[str, Callable[[Row], str]]] = [("method", lambda row: row.cell.method)]
    if len(conditions) > 1:
        words.append(("condition", lambda row: results.label(row.cell.condition)))
    if len(pairs) > 1:
        words.append(("pair", lambda row: f"{row.cell.pair[0]} → {row.cell.pair[1]}"))
    cells = [[get(row) for _, get in words] for row in rows]
    choices = "".join(_select(name, distinct(cell[number] for cell in cells)) for number, (name, _) in enumerate(words))
    heads = "".join(_head(name, "", "words") for name, _ in words)
    heads += "".join(_head(column.head, column.about, column.kind) for column in columns)
    bodies = "".join(
        _row(number, row, cells[number], columns, metric, [name for name, _ in words])
        for number, row in enumerate(rows)
    )
    return (
        '<p class="note screen">A line is one method over all seeds. Press a head to sort, and the arrow of a line to '
        "see the runs behind it, with their folders and commands.</p>"
        f"{_note(interval_note(results))}"
        '<div class="controls"><label>Search <input type="search" id="search" autocomplete="off"></label>'
        f'{choices}<output id="count" aria-live="polite"></output></div>'
        '<div class="wide" tabindex="0" role="region" aria-label="Table of all methods, scrolls sideways">'
        f'<table id="numbers"><caption>{escape(results.metrics[metric].title.capitalize())} and the rest, mean over '
        f"{counted(len(results.study['seeds']), 'seed')}</caption><thead><tr>{heads}</tr></thead>\n{bodies}"
        "</table></div>"
    )


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}.</p>' if text else ""


def _select(name: str, values: Sequence[str]) -> str:
    options = "".join(f'<option value="{escape(value)}">{escape(value)}</option>' for value in values)
    choice = f'<select data-filter="{name}"><option value="">all</option>{options}</select>'
    return f"<label>{name.capitalize()} {choice}</label>"


def _head(name: str, about: str, kind: str) -> str:
    title = f' title="{escape(about)}"' if about else ""
    return f'<th scope="col" class="{kind}" aria-sort="none"{title}><button type="button">{escape(name)}</button></th>'


def _row(
    number: int, row: Row, words: Sequence[str], columns: Sequence[_Column], metric: str, names: Sequence[str]
) -> str:
    method, *others = words
    data = "".join(f' data-{name}="{escape(word)}"' for name, word in zip(names, words, strict=True))
    kind = " ".join(
        filter(
            None,
            [
                row.cell.method if row.cell.method in (PLAIN, TEACHER) else "",
                "incomplete" if row.cell.incomplete else "",
            ],
        )
    )
    first = (
        f'<th scope="row"><button type="button" class="open" aria-expanded="false" aria-controls="behind-{number}" '
        f'aria-label="Runs of {escape(", ".join(words))}"></button><span>{escape(method)}</span></th>'
    )
    said = "".join(f'<td class="words">{escape(word)}</td>' for word in others)
    for column in columns:
        value, text = column.cell(row)
        sorted_by = f' data-value="{value!r}"' if value is not None else ""
        said += f'<td class="{column.kind}"{sorted_by}>{text}</td>'
    runs = "".join(_run(run, run[metric], row.metric) for run in row.cell.runs)
    wide = len(words) + len(columns)
    name = row.metric.title + (", %" if row.metric.percent else "")
    return (
        f'<tbody class="line {kind}"{data}><tr>{first}{said}</tr>'
        f'<tr class="behind" id="behind-{number}" hidden><td colspan="{wide}"><table><thead><tr>'
        f'<th scope="col">seed</th><th scope="col">{escape(name)}</th><th scope="col" class="words">status</th>'
        '<th scope="col" class="words">folder and command</th></tr></thead>'
        f"<tbody>{runs}</tbody></table></td></tr></tbody>\n"
    )


def _run(run: Record, number: float | None, metric: Metric) -> str:
    value = "" if number is None else format_number(number, metric)
    status = escape(run["status"])
    if run["status"] != "done":
        status = f'<span class="missing">{status}</span>{error_of(run)}'
    return (
        f'<tr><td>{run["seed"]}</td><td>{value}</td><td class="words">{status}</td>'
        f'<td class="words"><code class="folder">{escape(run["folder"])}</code>{command_of(run["command"])}</td></tr>'
    )
