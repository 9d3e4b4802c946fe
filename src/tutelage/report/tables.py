"""A study's table in text and data formats."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tutelage.errors import TutelageError, unknown
from tutelage.files import as_path, atomic_write
from tutelage.report.conclusions import conclusion
from tutelage.report.markdown import markdown_table
from tutelage.studies import PLAIN, TEACHER
from tutelage.studies.reading import CONDITION, PAIR
from tutelage.studies.results import Results, Row, missing_reason
from tutelage.studies.statistics import FEWEST_SEEDS, Interval
from tutelage.tasks import Metric
from tutelage.text import csv_text, markdown_text, printable


def write_table(
    results: Results, format: str, path: str | Path | None = None, *, metric: str | None = None, interval: str = "t"
) -> Path:
    """Write ``table_as`` to a file atomically, by default to ``report.FORMAT`` in the study's folder.

    Raises:
        TutelageError: as ``table_as``, or the file cannot be written.
    """
    target = results.folder / f"report.{format}" if path is None else as_path(path)
    atomic_write(target, table_as(results, format, metric=metric, interval=interval), follow=path is not None)
    return target


def table_as(results: Results, format: str, *, metric: str | None = None, interval: str = "t") -> bytes:
    """A study's table in one of the formats, as bytes; text is UTF-8.

    ``csv``, ``json`` and ``parquet`` contain ``flat_rows``; in csv, names that a spreadsheet would read as formulas
    begin with ``'``. ``md`` contains a table for each condition and pair with its conclusion, ``latex`` the same tables
    for the package booktabs.

    Raises:
        TutelageError: the format, metric or interval does not exist, or pyarrow is not installed.
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    return FORMATS[format](results, results.metric_name(metric), interval)


def flat_rows(results: Results, metric: str | None = None, interval: str = "t") -> list[dict[str, Any]]:
    """The rows of the table as plain dictionaries; unknown values are ``None``, never NaN.

    ``n`` is the number of requested seeds; ``missing`` names those without a value. ``gain`` is method - plain, and
    shares are in [0, 1].
    """
    lines = []
    metric = results.metric_name(metric)
    for row in results.table(metric, interval):
        cell = row.cell
        line: dict[str, Any] = dict(zip((*CONDITION, *PAIR), (*cell.condition, *cell.pair), strict=True))
        line |= {"method": cell.method, "function": cell.runs[0]["function"], "metric": metric, "n": len(cell.runs)}
        line |= {"mean": None, "low": None, "high": None, "deviation": row.deviation}
        line |= {"gain": None, "gain_low": None, "gain_high": None, "p": row.p, "holm": row.holm, "wins": row.wins}
        if row.mean:
            line |= {"mean": row.mean.mean, "low": finite(row.mean.low), "high": finite(row.mean.high)}
        if row.gain:
            line |= {"gain": row.gain.mean, "gain_low": finite(row.gain.low), "gain_high": finite(row.gain.high)}
        lines.append({**line, "missing": missing_reason(cell) if cell.incomplete else None})
    return lines


def finite(value: float) -> float | None:
    """The value, or ``None`` for NaN, which JSON cannot represent."""
    return None if math.isnan(value) else value


# --- the formats


def _csv(results: Results, metric: str, interval: str) -> bytes:
    rows = flat_rows(results, metric, interval)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    for row in rows:
        writer.writerow({name: csv_text(value) if isinstance(value, str) else value for name, value in row.items()})
    return text.getvalue().encode()


def _json(results: Results, metric: str, interval: str) -> bytes:
    return (json.dumps(flat_rows(results, metric, interval), indent=1, allow_nan=False) + "\n").encode()


def _parquet(results: Results, metric: str, interval: str) -> bytes:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise TutelageError("parquet needs pyarrow; pip install 'tutelage[frame]'") from error
    rows = flat_rows(results, metric, interval)
    texts = {*CONDITION, *PAIR, "method", "function", "metric", "missing"} - {"per_class"}
    whole = {"per_class", "n"}
    schema = pa.schema(
        [(name, pa.string() if name in texts else pa.int64() if name in whole else pa.float64()) for name in rows[0]]
    )
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink)
    return sink.getvalue()


def _markdown(results: Results, metric: str, interval: str) -> bytes:
    tables = grouped_rows(results, metric, interval)
    parts = [
        f"# {markdown_text(str(results.study['name']))}: {results.metrics[metric].title}",
        caption(results, interval),
    ]
    for heading, rows in tables:
        parts += [f"## {markdown_text(heading)}", markdown_text(conclusion(rows))]
        head, *lines = [(markdown_text(name), *values) for name, *values in table_cells(rows)]
        parts.append(markdown_table(head, lines))
    return ("\n\n".join(parts) + "\n").encode()


def _latex(results: Results, metric: str, interval: str) -> bytes:
    tables = grouped_rows(results, metric, interval)
    title = f"{results.study['name']}: {results.metrics[metric].title}"
    parts = [r"% needs \usepackage{booktabs}"]
    for heading, rows in tables:
        head, *lines = [" & ".join(map(_for_latex, line)) + r" \\" for line in table_cells(rows)]
        parts += [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_for_latex(f'{title}; {heading}. {caption(results, interval)}')}}}",
            r"\begin{tabular}{lrrrr}",
            r"\toprule",
            head,
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    return ("\n".join(parts) + "\n").encode()


FORMATS: Mapping[str, Callable[[Results, str, str], bytes]] = MappingProxyType(
    {"md": _markdown, "csv": _csv, "json": _json, "parquet": _parquet, "latex": _latex}
)
"""The formats of ``table_as``."""


# --- the displayed table


def grouped_rows(results: Results, metric: str | None, interval: str) -> list[tuple[str, list[Row]]]:
    """The displayed rows by condition and pair, with their headings."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in display_rows(results, metric, interval):
        groups.setdefault((row.cell.condition, row.cell.pair), []).append(row)
    return [(results.heading(*key), rows) for key, rows in groups.items()]


def display_rows(results: Results, metric: str | None, interval: str) -> list[Row]:
    """The rows of the table, without intervals of means over fewer than three seeds."""
    rows = results.table(metric, interval)
    if len(results.study["seeds"]) >= FEWEST_SEEDS:
        return rows
    return [replace(row, mean=row.mean and replace(row.mean, low=math.nan, high=math.nan)) for row in rows]


def interval_note(results: Results) -> str:
    """A note if the seeds are too few for intervals of means; otherwise empty."""
    return {1: "One seed: no interval", 2: "Two seeds: no interval of a mean"}.get(len(results.study["seeds"]), "")


def caption(results: Results, interval: str) -> str:
    """The explanation of the columns of the displayed table."""
    seeds = len(results.study["seeds"])
    spread = interval_note(results) or (
        "With ± half of its 95 % interval"
        if interval == "t"
        else "With ± half of its 95 % interval, or its bounds in brackets"
    )
    kind = "Student's t" if interval == "t" else "bootstrap"
    return (
        f"Mean over {seeds} seed{'' if seeds == 1 else 's'}. {spread}. The difference to the plain student is the mean "
        f"of paired differences with its 95 % interval ({kind}); p is that of the paired t-test after Holm's "
        "correction within each table; a tie with the plain student counts as half a win."
    )


def table_cells(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """The table of one condition and pair as text: the column headings, then the rows."""
    metric = rows[0].metric
    unit, points = (", %", ", percentage points") if metric.percent else ("", "")
    lines: list[tuple[str, ...]] = [("", f"{metric.title}{unit}", f"difference to plain{points}", "p (Holm)", "wins")]
    plain = next((row for row in rows if row.cell.method == PLAIN), None)
    for row in rows:
        p = "" if row.holm is None else "< 0.001" if row.holm < 0.001 else f"{row.holm:.3f}"
        wins = "" if row.wins is None else f"{row.wins:g} of {len(row.cell.runs)}"
        lines.append((row.cell.method, _mean(row), _gain(row, plain), p, wins))
    return lines


def _mean(row: Row) -> str:
    if row.mean is None:
        return f"missing: {missing_reason(row.cell)}" if row.cell.incomplete else ""
    return " ".join(filter(None, (format_number(row.mean.mean, row.metric), mean_interval(row))))


def mean_interval(row: Row) -> str:
    """Half of the 95 % interval of a row's mean, or its bounds if it is asymmetric; empty without an interval."""
    if row.mean is None or math.isnan(row.mean.low):
        return ""
    metric, mean, low, high = row.metric, row.mean.mean, row.mean.low, row.mean.high
    if math.isclose(high - mean, mean - low, rel_tol=1e-6, abs_tol=1e-12):
        half = high - mean
        return f"± {format_number(half if half > 1e-9 * abs(mean) else 0.0, metric)}"
    return f"[{format_number(low, metric)}, {format_number(high, metric)}]"


def _gain(row: Row, plain: Row | None) -> str:
    if row.gain is not None:
        return format_interval(row.gain, row.metric)
    if row.cell.method in (TEACHER, PLAIN) or row.cell.incomplete or plain is None or not plain.cell.incomplete:
        return ""
    return f"missing: plain, {missing_reason(plain.cell)}"


def format_number(value: float, metric: Metric, sign: str = "") -> str:
    """A number as in tables: shares as percentages, large numbers as integers, small ones with two digits."""
    if metric.percent:
        return f"{100 * value:{sign}.2f}"
    if abs(value) >= 1000:
        return f"{value:{sign},.0f}"
    return f"{value:{sign}.3f}" if abs(value) >= 0.01 or value == 0 else f"{value:{sign}.2g}"


def format_interval(interval: Interval, metric: Metric) -> str:
    """A difference with the bounds of its interval, if it has one."""
    mean = format_number(interval.mean, metric, "+")
    if math.isnan(interval.low):
        return mean
    return f"{mean} [{format_number(interval.low, metric, '+')}, {format_number(interval.high, metric, '+')}]"


_LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "|": r"\textbar{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "→": r"$\rightarrow$",
    "−": "$-$",
}


def _for_latex(text: str) -> str:
    """Escape text for LaTeX."""
    return "".join(_LATEX.get(sign, sign) for sign in printable(" ".join(text.split())))
