"""A study as one HTML page that needs nothing else: no network, no other file.

These modules compute the values of the page; its markup is in the Jinja2 templates of ``templates/``, which escape
every value. Only figures, the style sheet and the script are inserted as they are.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from tutelage.files import as_path, atomic_write
from tutelage.report.conclusions import summary
from tutelage.report.figures import sections as figure_sections
from tutelage.report.page.overview import overview
from tutelage.report.page.runs import failed, trials
from tutelage.report.page.study import counts, incomplete, question, setup
from tutelage.report.page.table import table
from tutelage.report.svg import Sheet
from tutelage.report.tables import display_rows
from tutelage.studies.results import Results, Row
from tutelage.text import printable, printable_values

REPORT = "report.html"

_INTERVALS = {
    "t": "Student's t intervals",
    "bootstrap": "from 9,999 bootstrap resamples; bands along curves are Student's t",
}


@dataclass(frozen=True)
class Section:
    """A section of the page: its anchor, its title, and what its template renders as ``content``."""

    key: str
    title: str
    template: str
    content: Any


def write_page(
    results: Results, path: str | Path | None = None, *, metric: str | None = None, interval: str = "t"
) -> Path:
    """Write the report of a study, and return its path.

    The file makes no request: its content security policy forbids requests and any script but its own. All values of
    the study, names and errors included, are shown as text.

    Args:
        results: of the study.
        path: the file; by default ``report.html`` in the study's folder.
        metric: the metric of the table, the answer and the gains, one of ``Results.metrics``; by default the task's
            main metric.
        interval: ``"t"`` or ``"bootstrap"``, as in ``Results.table``; bands along curves are always Student's t.

    Raises:
        TutelageError: the metric or the interval does not exist, or the file cannot be written.
    """
    target = results.folder / REPORT if path is None else as_path(path)
    atomic_write(target, page(results, metric, interval).encode(), follow=path is not None)
    return target


def page(results: Results, metric: str | None = None, interval: str = "t") -> str:
    """Render the page of a study."""
    results = replace(
        results,
        study=printable_values(results.study),
        runs=printable_values(results.runs),
        trials=printable_values(results.trials),
    )
    metric = results.metric_name(metric)
    rows = display_rows(results, metric, interval)
    sheet = Sheet()
    sections = _sections(results, rows, metric, interval, sheet)
    style, script = style_sheet(), _static("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        templates()
        .get_template("page.html")
        .render(
            name=str(results.study["name"]),
            question=question(results),
            counts=counts(results),
            incomplete=incomplete(results),
            sections=sections,
            folder=printable(str(results.folder)),
            interval=_INTERVALS[interval],
            definitions=sheet.definitions(),
            style=style,
            script=script,
            policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; "
            "form-action 'none'",
        )
    )


def _sections(results: Results, rows: Sequence[Row], metric: str, interval: str, sheet: Sheet) -> list[Section]:
    """The sections of the page that have content, in order."""
    figures = figure_sections(results, rows, metric, sheet)
    sections = [
        Section("answer", "The answer", "answer.html", summary(results, metric, interval)),
        Section("setup", "Setup", "setup.html", setup(results, metric)),
        Section("overview", "Overview", "overview.html", overview(results, rows)),
        Section("table", "Results", "table.html", table(results, rows, metric)),
        Section("failed", "Runs without a result", "failed.html", failed(results)),
        *(Section(figure.key, figure.title, "figures.html", figure) for figure in figures),
        Section("trials", "Tuning trials", "trials.html", trials(results)),
    ]
    return [section for section in sections if section.content]


@cache
def templates(package: str = __name__) -> Environment:
    """The templates of a package, and those of this one, such as ``head.html``; every value is escaped.

    Args:
        package: has a folder ``templates``.
    """
    return Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader(__name__)]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def style_sheet() -> str:
    """The style sheet of all pages."""
    return _static("page.css")


def _static(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")
