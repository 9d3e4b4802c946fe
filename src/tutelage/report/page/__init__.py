"""A study as one page of HTML that needs nothing else: no network, no other file."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import replace
from html import escape
from importlib.resources import files
from pathlib import Path

from tutelage.files import as_path, atomic_write
from tutelage.report.figures import sections
from tutelage.report.page.figures import panels_of
from tutelage.report.page.overview import overview
from tutelage.report.page.runs import failed, trials
from tutelage.report.page.study import answered, asked, question, state
from tutelage.report.page.table import table
from tutelage.report.svg import Sheet
from tutelage.report.tables import display_rows
from tutelage.studies.results import Results
from tutelage.text import printable, printable_values

REPORT = "report.html"

_INTERVALS = {"t": "Student's t", "bootstrap": "of 9,999 bootstrap resamples, and bands along curves Student's t,"}


def write_page(
    results: Results, path: str | Path | None = None, *, metric: str | None = None, interval: str = "t"
) -> Path:
    """Write the report of a study, and return its path.

    The file opens without a network and makes no request; its policy forbids it any, and any script but its own. What
    comes from the study, names and errors too, is shown as text.

    Args:
        results: of the study.
        path: of the file; ``report.html`` in the study's folder unless given.
        metric: what the table, the answer and the gains are about, a name of ``Results.metrics``; the task's main
            metric unless given.
        interval: theirs, as in ``Results.table``; bands along curves are always Student's t.

    Raises:
        TutelageError: for a metric or an interval that does not exist, or where the file cannot be written.
    """
    target = results.folder / REPORT if path is None else as_path(path)
    atomic_write(target, page(results, metric, interval).encode(), follow=path is not None)
    return target


def page(results: Results, metric: str | None = None, interval: str = "t") -> str:
    """The whole page."""
    results = replace(
        results,
        study=printable_values(results.study),
        runs=printable_values(results.runs),
        trials=printable_values(results.trials),
    )
    metric = results.metric_name(metric)
    rows = display_rows(results, metric, interval)
    sheet = Sheet()
    pictures = sections(results, rows, metric, sheet)
    parts = {
        "answer": ("The answer", answered(results, metric, interval)),
        "asked": ("What was asked", asked(results, metric)),
        "overview": ("Overview", overview(results, rows)),
        "table": ("The numbers", table(results, rows, metric)),
        "failed": ("Runs without a result", failed(results)),
        **{one.key: (one.title, panels_of(one)) for one in pictures},
        "trials": ("What was tried to set the methods", trials(results)),
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
<p class="question">{question(results)}</p>
{state(results)}
<nav aria-label="Contents"><ol>{links}</ol></nav>
</header>
<main>
{body}</main>
<footer>
<p>Made by <code>tutelage report</code> from the plain files of <code>{escape(printable(str(results.folder)))}</code>.
Intervals are {_INTERVALS[interval]} over seeds at 95 %. Values of a failed run are missing: no mean is taken
over fewer seeds than requested.</p>
</footer>
{sheet.definitions()}
<script>{script}</script>
</body>
</html>
"""


def _static(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")
