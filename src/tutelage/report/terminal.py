"""The tables of a study on a terminal."""

from __future__ import annotations

from types import MappingProxyType

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from tutelage.report.console import Terminal
from tutelage.report.tables import caption, grid, tables_of
from tutelage.report.words import standing, verdict
from tutelage.studies.results import Results

_STYLES = MappingProxyType(
    {"higher": {"above": "green", "below": "red"}, "lower": {"above": "red", "below": "green"}, None: {}}
)


def show_tables(results: Results, metric: str | None = None, interval: str = "t") -> None:
    """Print a table of each condition and pair with what may be said of it; what clearly differs is in colour."""
    console = Terminal()
    for heading, rows in tables_of(results, metric, interval):
        head, *lines = grid(rows)
        table = Table(title=Text(heading, style="bold"), title_justify="left", box=SIMPLE_HEAD)
        table.add_column(head[0])
        for name in head[1:]:
            table.add_column(name, justify="right")
        for row, line in zip(rows, lines, strict=True):
            table.add_row(*line, style=_STYLES[row.metric.better].get(standing(row)))
        console.print(table)
        console.print(verdict(rows), highlight=False)
        console.print()
    console.print(caption(results, interval), style="dim", highlight=False)
