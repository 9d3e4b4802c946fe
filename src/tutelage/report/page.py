"""A study as one page of HTML that needs nothing else: no network, no other file."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from importlib.resources import files
from pathlib import Path
from statistics import fmean
from typing import Any

from tutelage.files import atomic_write
from tutelage.report.pictures import sections
from tutelage.report.pictures.frame import Block, Panel, Section
from tutelage.report.svg import Sheet
from tutelage.report.tables import shown as _plainly
from tutelage.report.words import answer
from tutelage.studies import PLAIN, TEACHER
from tutelage.studies.results import METRICS, STUDY, Record, Results, Row
from tutelage.studies.statistics import Interval

_FEW = 30
"""So many panels of a section are shown at once; of more, those of the first condition."""


_INTERVALS = {"t": "Student's t", "bootstrap": "of 9,999 bootstrap resamples, and bands along curves Student's t,"}


def write_page(results: Results, path: str | Path, *, metric: str = "accuracy", interval: str = "t") -> None:
    """Write the report of a study.

    The file opens without a network and makes no request; its policy forbids it any, and any script but its own. What
    comes from the study, names and errors too, is shown as text.

    Args:
        results: of the study.
        path: of the file, ``report.html`` say.
        metric: what the table, the answer and the gains are about, a name of ``METRICS``.
        interval: theirs, as in ``Results.table``; bands along curves are always Student's t.

    Raises:
        TutelageError: for a metric or an interval that does not exist, or where the file cannot be written.
    """
    atomic_write(path, page(results, metric, interval).encode())


def page(results: Results, metric: str = "accuracy", interval: str = "t") -> str:
    """The whole page."""
    rows = results.table(metric, interval)
    sheet = Sheet()
    pictures = sections(results, rows, metric, sheet)
    parts = {
        "answer": ("The answer", _answer(results, metric, interval)),
        "asked": ("What was asked", _asked(results, metric)),
        "table": ("The numbers", _table(results, rows, metric)),
        "failed": ("Runs without a result", _failed(results)),
        **{one.key: (one.title, _pictures(one)) for one in pictures},
        "trials": ("What was tried to set the methods", _trials(results)),
    }
    parts = {key: (title, body) for key, (title, body) in parts.items() if body}
    links = "".join(f'<li><a href="#{key}">{escape(title)}</a></li>' for key, (title, _) in parts.items())
    body = "".join(
        f'<section id="{key}" aria-labelledby="{key}-head"><h2 id="{key}-head">{escape(title)}</h2>{inner}</section>\n'
        for key, (title, inner) in parts.items()
    )
    style, script = (_static(name) for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; "
        "form-action 'none'"
    )
    name = escape(str(results.study["name"]))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>{name}: report of a study</title>
<style>{style}</style>
<noscript><style>.controls, .copy {{ display: none }} .behind[hidden] {{ display: table-row }}</style></noscript>
</head>
<body>
<a class="skip" href="#answer">To the answer</a>
<header>
<p class="kicker">Report of a study</p>
<h1>{name}</h1>
<p class="question">{_question(results)}</p>
{_state(results)}
<nav aria-label="Contents"><ol>{links}</ol></nav>
</header>
<main>
{body}</main>
<footer>
<p>Made by <code>tutelage report</code> from the plain files of <code>{escape(str(results.folder))}</code>.
Intervals are {_INTERVALS[interval]} over seeds at 95 %. A run that failed leaves a hole: no mean is ever taken of fewer
seeds than were asked for.</p>
</footer>
{sheet.definitions()}
<script>{script}</script>
</body>
</html>
"""


def _static(name: str) -> str:
    return (files("tutelage.report") / "static" / name).read_text(encoding="utf-8")


# --- the head


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _distinct(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _places(results: Results) -> tuple[list[Any], list[Any]]:
    """The conditions and the pairs of networks."""
    return _distinct(cell.condition for cell in results.cells), _distinct(cell.pair for cell in results.cells)


def _question(results: Results) -> str:
    methods = [name for name in results.study["methods"] if name != PLAIN]
    conditions, pairs = _places(results)
    asked = f"Does {methods[0]} help" if len(methods) == 1 else f"Which of {len(methods)} ways to distil helps"
    if not methods:
        asked = "How well does plain training do"
    beyond = " over plain training" if methods else ""
    where = f" on {', '.join(_distinct(str(condition[0]) for condition in conditions))}"
    many = [_counted(len(conditions), "condition")] if len(conditions) > 1 else []
    many += [_counted(len(pairs), "pair") + " of networks"] if len(pairs) > 1 else []
    return escape(f"{asked}{beyond}{where}{', under ' + ' and '.join(many) if many else ''}?")


def _state(results: Results) -> str:
    counts = Counter(run["status"] for run in results.runs)
    conditions, pairs = _places(results)
    methods = len(results.study["methods"]) - 1
    facts = [
        (f"{counts['done']:,} of {len(results.runs):,}", "runs done"),
        (f"{methods}", "method" if methods == 1 else "methods"),
        (f"{len(conditions)}", "condition" if len(conditions) == 1 else "conditions"),
        (f"{len(pairs)}", "pair of networks" if len(pairs) == 1 else "pairs of networks"),
        (f"{len(results.study['seeds'])}", "seed" if len(results.study["seeds"]) == 1 else "seeds"),
    ]
    holes = [
        f"{counts[status]} {word}" for status, word in (("failed", "failed"), ("missing", "missing")) if counts[status]
    ]
    said = f'<li class="bad"><b>{escape(", ".join(holes))}</b> <a href="#failed">which</a></li>' if holes else ""
    return f'<ul class="state">{"".join(f"<li><b>{value}</b> {words}</li>" for value, words in facts)}{said}</ul>'


def _answer(results: Results, metric: str, interval: str) -> str:
    said = "".join(f"<p>{escape(sentence)}</p>" for sentence in answer(results, metric, interval))
    return f'<div class="answer">{said}</div>'


# --- what was asked


def _asked(results: Results, metric: str) -> str:
    study = results.study
    conditions, pairs = _places(results)
    rates = _rates(results)
    again = f"tutelage study {shlex.quote(str(results.folder / STUDY))} --out {shlex.quote(str(results.folder))}"
    beyond = [name for name, value in study["evaluate"].items() if value]
    facts: list[tuple[str, str]] = [
        ("Data", escape(", ".join(_distinct(str(condition[0]) for condition in conditions)))),
        (
            "Conditions",
            _list(escape(results.label(condition)) + rates.get(condition, "") for condition in conditions),
        ),
        ("Networks", _list(f"{escape(teacher)} teaches {escape(student)}" for teacher, student in pairs)),
        ("Teachers learn from", escape(", ".join(f"{one} labels" for one in study["teacher_labels"]))),
        ("Methods", _list((_way(name, way) for name, way in study["methods"].items()), "flow")),
        ("Seeds", escape(", ".join(str(seed) for seed in study["seeds"])) + ", paired over methods"),
        ("Training", _settings(study["train"]) or "as the defaults are"),
        ("Judged by", escape(METRICS[metric].title) + ", of the test part, after the last epoch"),
        (
            "Measured beyond the usual",
            escape(", ".join(f"{name} {_value(study['evaluate'][name])}" for name in beyond)),
        ),
        (
            "Tuning",
            f"{_counted(study['budget'], 'trial')} a method, judged on held-out training data"
            if study["budget"]
            else "none: every method has the settings given here, or else its defaults",
        ),
        ("Versions", _versions(results)),
        ("Again", _code(again)),
    ]
    return '<dl class="facts">' + "".join(f"<dt>{name}</dt><dd>{said}</dd>" for name, said in facts if said) + "</dl>"


def _rates(results: Results) -> dict[Any, str]:
    """What share of the training labels came out wrong, by condition."""
    found = {}
    for cell in results.cells:
        rates = [run["noise_rate"] for run in cell.runs if run["noise_rate"] is not None]
        if cell.method == PLAIN and rates:
            low, high = 100 * min(rates), 100 * max(rates)
            spread = f"{low:.1f}" if high - low < 0.05 else f"{low:.1f} to {high:.1f}"
            found[cell.condition] = f' <span class="quiet">({spread} % of the training labels wrong)</span>'
    return found


def _list(items: Iterable[str], kind: str = "plain") -> str:
    return f'<ul class="{kind}">{"".join(f"<li>{item}</li>" for item in items)}</ul>'


def _way(name: str, way: Mapping[str, Any]) -> str:
    settings = _settings(way.get("settings") or {})
    function = f' <span class="quiet">{escape(str(way["method"]))}</span>' if way["method"] != name else ""
    return f"<b>{escape(name)}</b>{function}{' ' + settings if settings else ''}"


def _settings(settings: Mapping[str, Any]) -> str:
    return " ".join(f"<code>{escape(name)}={escape(_value(value))}</code>" for name, value in settings.items())


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _versions(results: Results) -> str:
    """What the runs were made with, as their folders say; all that differ."""
    found: dict[str, list[str]] = {}
    for run in results.runs:
        try:
            said = json.loads((results.folder / run["folder"] / "versions.json").read_bytes())
        except (OSError, ValueError):
            continue
        for name, version in said.items() if isinstance(said, dict) else ():
            found.setdefault(str(name), []).append(str(version))
    return escape(", ".join(f"{name} {' and '.join(_distinct(versions))}" for name, versions in found.items()))


def _code(command: str) -> str:
    return (
        f'<span class="command"><code>{escape(command)}</code> '
        '<button type="button" class="copy" aria-label="Copy the command">copy</button></span>'
    )


# --- the table


def _shown(value: float, metric: str, sign: str = "") -> str:
    """A number with a minus that is as wide as a plus."""
    return _plainly(value, METRICS[metric], sign).replace("-", "−")


@dataclass(frozen=True)
class _Column:
    """A column of numbers: its head, what the head means, a cell's number to sort by and its text, and its class."""

    head: str
    about: str
    cell: Callable[[Row], tuple[float | None, str]]
    kind: str = "number"


_MORE = {
    "accuracy": "accuracy",
    "worst_class_accuracy": "worst class",
    "memorised": "memorised",
    "agreement": "agreement",
    "nll": "NLL",
    "ece": "ECE",
    "corruption_accuracy": "corrupted",
    "ood_auroc": "OOD",
    "seconds": "seconds",
    "forward_passes": "passes",
}


_DRAWN = ("agreement", "seconds", "forward_passes")
"""What a printed page, which is not as wide as a screen, leaves to the pictures or to the records."""


def _columns(results: Results, rows: Sequence[Row], metric: str) -> list[_Column]:
    share = METRICS[metric].share
    unit, points = (", %", ", points") if share else ("", "")
    columns = [
        _Column(
            _MORE.get(metric, METRICS[metric].title) + unit,
            f"{METRICS[metric].title}: mean over seeds and half of its 95 % interval",
            partial(_mean, metric=metric),
        )
    ]
    if any(row.deviation is not None for row in rows):
        columns.append(_Column("sd", "standard deviation over seeds", partial(_deviation, metric=metric)))
    if any(row.gain is not None for row in rows):
        columns.append(
            _Column(
                f"gain{points}",
                "mean paired difference to the plain student and its 95 % interval, not adjusted",
                partial(_gain, metric=metric),
            )
        )
    if any(row.holm is not None for row in rows):
        columns.append(
            _Column("p (Holm)", "paired t-test, adjusted for the methods of the same condition and pair", _p)
        )
    if any(row.wins is not None for row in rows):
        columns.append(_Column("wins", "seeds on which it is better than the plain student, ties counting half", _wins))
    for name, head in _MORE.items():
        if name != metric and any(run[name] is not None for run in results.runs):
            unit = ", %" if METRICS[name].share else ""
            kind = "number screen" if name in _DRAWN else "number"
            about = f"{METRICS[name].title}: mean over seeds"
            columns.append(_Column(head + unit, about, partial(_more, metric=name), kind))
    return columns


def _mean(row: Row, metric: str) -> tuple[float | None, str]:
    if row.mean is None:
        return None, _hole(row) if row.cell.holes else ""
    return row.mean.mean, f"<b>{_shown(row.mean.mean, metric)}</b>{_half(row.mean, metric)}"


def _half(interval: Interval, metric: str) -> str:
    low, high = interval.low, interval.high
    if math.isnan(high):
        return ""
    even = math.isclose(high - interval.mean, interval.mean - low, rel_tol=1e-6, abs_tol=1e-12)
    ends = f"± {_shown(high - interval.mean, metric)}" if even else f"[{_shown(low, metric)}, {_shown(high, metric)}]"
    return f' <span class="quiet">{ends}</span>'


def _hole(row: Row) -> str:
    why = "; ".join(f"seed {run['seed']}: {run['error'] or run['status']}" for run in row.cell.holes)
    return (
        f'<abbr class="hole" title="{escape(why)}">hole</abbr> '
        f'<span class="quiet">{len(row.cell.holes)} of {len(row.cell.runs)} runs</span>'
    )


def _deviation(row: Row, metric: str) -> tuple[float | None, str]:
    return row.deviation, "" if row.deviation is None else _shown(row.deviation, metric)


def _gain(row: Row, metric: str) -> tuple[float | None, str]:
    if row.gain is None:
        return None, ""
    mean = _shown(row.gain.mean, metric, "+")
    if math.isnan(row.gain.low):
        return row.gain.mean, f"<b>{mean}</b>"
    low, high = (_shown(end, metric, "+") for end in (row.gain.low, row.gain.high))
    return row.gain.mean, f'<b>{mean}</b> <span class="quiet">[{low}, {high}]</span>'


def _p(row: Row) -> tuple[float | None, str]:
    if row.holm is None:
        return None, ""
    return row.holm, "&lt; 0.001" if row.holm < 0.001 else f"{row.holm:.3f}"


def _wins(row: Row) -> tuple[float | None, str]:
    return row.wins, "" if row.wins is None else f"{row.wins:g} of {len(row.cell.runs)}"


def _more(row: Row, metric: str) -> tuple[float | None, str]:
    values = row.cell.values(metric)
    if values is None:
        return None, '<span class="quiet">hole</span>' if row.cell.holes else ""
    return fmean(values), _shown(fmean(values), metric)


def _table(results: Results, rows: Sequence[Row], metric: str) -> str:
    conditions, pairs = _places(results)
    columns = _columns(results, rows, metric)
    words: list[tuple[str, Callable[[Row], str]]] = [("method", lambda row: row.cell.method)]
    if len(conditions) > 1:
        words.append(("condition", lambda row: results.label(row.cell.condition)))
    if len(pairs) > 1:
        words.append(("pair", lambda row: f"{row.cell.pair[0]} → {row.cell.pair[1]}"))
    cells = [[get(row) for _, get in words] for row in rows]
    choices = "".join(
        _select(name, _distinct(cell[number] for cell in cells)) for number, (name, _) in enumerate(words)
    )
    heads = "".join(_head(name, "", "words") for name, _ in words)
    heads += "".join(_head(column.head, column.about, column.kind) for column in columns)
    bodies = "".join(
        _row(number, row, cells[number], columns, metric, [name for name, _ in words])
        for number, row in enumerate(rows)
    )
    return (
        '<p class="note screen">A line is one method over all seeds. Press a head to sort, and the arrow of a line to '
        "see the runs behind it, with their folders and commands.</p>"
        '<div class="controls"><label>Search <input type="search" id="search" autocomplete="off"></label>'
        f'{choices}<output id="count" aria-live="polite"></output></div>'
        '<div class="wide" tabindex="0" role="region" aria-label="Table of all methods, scrolls sideways">'
        f'<table id="numbers"><caption>{escape(METRICS[metric].title.capitalize())} and the rest, mean over '
        f"{_counted(len(results.study['seeds']), 'seed')}</caption><thead><tr>{heads}</tr></thead>\n{bodies}"
        "</table></div>"
    )


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
            None, [row.cell.method if row.cell.method in (PLAIN, TEACHER) else "", "holed" if row.cell.holes else ""]
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
    runs = "".join(_run(run, metric) for run in row.cell.runs)
    wide = len(words) + len(columns)
    name = METRICS[metric].title + (", %" if METRICS[metric].share else "")
    return (
        f'<tbody class="line {kind}"{data}><tr>{first}{said}</tr>'
        f'<tr class="behind" id="behind-{number}" hidden><td colspan="{wide}"><table><thead><tr>'
        f'<th scope="col">seed</th><th scope="col">{escape(name)}</th><th scope="col" class="words">status</th>'
        '<th scope="col" class="words">folder and command</th></tr></thead>'
        f"<tbody>{runs}</tbody></table></td></tr></tbody>\n"
    )


def _run(run: Record, metric: str) -> str:
    value = "" if run[metric] is None else _shown(run[metric], metric)
    status = escape(run["status"])
    if run["status"] != "done":
        status = f'<span class="hole">{status}</span>{_error(run)}'
    return (
        f'<tr><td>{run["seed"]}</td><td>{value}</td><td class="words">{status}</td>'
        f'<td class="words"><code class="folder">{escape(run["folder"])}</code>{_code(run["command"])}</td></tr>'
    )


def _error(run: Record) -> str:
    return f'<span class="error">{escape(run["error"])}</span>' if run["error"] else ""


def _failed(results: Results) -> str:
    """The runs that failed or are missing, and why."""
    holes = [run for run in results.runs if run["status"] != "done"]
    if not holes:
        return ""
    lines = "".join(
        f"<li><b>{escape(run['method'])}</b>, {escape(_where(results, run))}, seed {run['seed']}: "
        f'<span class="hole">{escape(run["status"])}</span>{_error(run)}'
        f'<code class="folder">{escape(run["folder"])}</code>{_code(run["command"])}</li>'
        for run in holes
    )
    return (
        '<p class="note">Each leaves a hole in the table and in the pictures. Asking for the study again runs them, '
        f'and only them.</p><ul class="failed">{lines}</ul>'
    )


def _where(results: Results, run: Record) -> str:
    condition = [run[axis] for axis in ("data", "noise", "imbalance", "per_class", "teacher_labels")]
    return results.heading(condition, (run["teacher"], run["student"]))


# --- pictures


def _pictures(section: Section) -> str:
    panels = sum(len(block.panels) for block in section.blocks)
    blocks = "".join(
        _block(block, section, opened=number == 0 or panels <= _FEW) for number, block in enumerate(section.blocks)
    )
    return f'<p class="note">{escape(section.note)}</p>{blocks}'


def _block(block: Block, section: Section, *, opened: bool) -> str:
    inner = "".join(_panel(panel) for panel in block.panels)
    large = " large" if section.width > 300 else ""
    grid = f'<div class="panels{large}" style="--least:{section.width}px">{inner}</div>'
    if not block.title:
        return grid
    return f'<details class="block"{" open" if opened else ""}><summary>{escape(block.title)}</summary>{grid}</details>'


def _panel(panel: Panel) -> str:
    note = f' <span class="quiet">{escape(panel.note)}</span>' if panel.note and panel.svg else ""
    title = f"<figcaption><b>{escape(panel.title)}</b>{note}</figcaption>" if panel.title or note else ""
    hole = "" if panel.note == "not measured" else "hole: "
    inner = panel.svg or f'<p class="empty">{hole}{escape(panel.note)}</p>'
    return f"<figure>{title}{inner}</figure>"


# --- tuning


def _trials(results: Results) -> str:
    """Of each method: where was searched, what was tried and what it gave, and what was chosen."""
    if not results.trials:
        return ""
    groups: dict[tuple[str, str], list[Record]] = {}
    for trial in results.trials:
        groups.setdefault((_where(results, trial), trial["method"]), []).append(trial)
    several = len({where for where, _ in groups}) > 1
    blocks = ""
    for (where, method), trials in groups.items():
        searched = "; ".join(f"{name} {where}" for name, where in trials[0]["space"].items())
        ordered = sorted(
            trials, key=lambda trial: -math.inf if trial["score"] is None else trial["score"], reverse=True
        )
        lines = "".join(_trial(trial) for trial in ordered)
        title = f"{method}, {where}" if several else method
        blocks += (
            f'<details class="block"><summary>{escape(title)} '
            f'<span class="quiet">{_counted(len(trials), "trial")}</span></summary>'
            f"{f'<p>Searched: {escape(searched)}</p>' if searched else ''}"
            f'<div class="wide"><table><caption>Trials of {escape(title)}, the best first</caption><thead><tr>'
            '<th scope="col"></th><th scope="col">held-out accuracy, %</th><th scope="col">seed</th>'
            f'<th scope="col">settings</th></tr></thead><tbody>{lines}</tbody></table></div></details>'
        )
    return (
        '<p class="note">Each method had as many trials, judged on held-out training data whose labels are as wrong as '
        f"the rest. The chosen one is marked.</p>{blocks}"
    )


def _trial(trial: Record) -> str:
    chosen = bool(trial.get("chosen"))
    score = (
        f"{100 * trial['score']:.2f}"
        if trial["score"] is not None
        else f'<span class="hole">{escape(trial["status"])}</span>'
    )
    return (
        f'<tr{" class=chosen" if chosen else ""}><td class="words">{"✓ chosen" if chosen else ""}</td><td>{score}</td>'
        f'<td>{trial["seed"]}</td><td class="words">{_settings(trial["settings"])}{_error(trial)}</td></tr>'
    )
