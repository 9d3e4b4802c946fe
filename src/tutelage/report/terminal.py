"""The tables of a study on a terminal."""

from __future__ import annotations

from types import MappingProxyType

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from tutelage.report.conclusions import conclusion, significance
from tutelage.report.console import Terminal
from tutelage.report.tables import caption, grouped_rows, table_cells
from tutelage.studies.results import Results

_STYLES = MappingProxyType(
    {"higher": {"above": "green", "below": "red"}, "lower": {"above": "red", "below": "green"}, None: {}}
)


def print_tables(results: Results, metric: str | None = None, interval: str = "t") -> None:
    """Print a table for each condition and pair with its conclusion; significantly different methods are coloured."""
    console = Terminal()
    for heading, rows in grouped_rows(results, metric, interval):
        head, *lines = table_cells(rows)
        table = Table(title=Text(heading, style="bold"), title_justify="left", box=SIMPLE_HEAD)
        table.add_column(head[0])
        for name in head[1:]:
            table.add_column(name, justify="right")
        for row, line in zip(rows, lines, strict=True):
            table.add_row(*line, style=_STYLES[row.metric.better].get(significance(row)))
        console.print(table)
        console.print(conclusion(rows), highlight=False)
        console.print()
    console.print(caption(results, interval), style="dim", highlight=False)
