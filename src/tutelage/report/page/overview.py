"""The overview: every method under every condition, coloured by its difference to the plain student."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tutelage.report.conclusions import directions, significance
from tutelage.report.page.values import distinct, format_number
from tutelage.studies import PLAIN, TEACHER
from tutelage.studies.results import Results, Row, missing_reason


def overview(results: Results, rows: Sequence[Row]) -> dict[str, Any]:
    """A table of methods against conditions and pairs, as a heat map; empty for a single condition and pair."""
    metric = rows[0].metric
    places = distinct((row.cell.condition, row.cell.pair) for row in rows)
    if len(places) < 2:
        return {}
    cells = {(row.cell.method, (row.cell.condition, row.cell.pair)): row for row in rows}
    largest = max((abs(row.gain.mean) for row in rows if row.gain is not None), default=0.0)
    several = len({pair for _, pair in places}) > 1
    above, below = directions(metric)
    first, second = (above, below) if metric.better != "lower" else (below, above)
    return {
        "title": metric.heading,
        "unit": ", %" if metric.percent else "",
        "first": first,
        "second": second,
        "heads": [(results.label(condition), " → ".join(pair) if several else "") for condition, pair in places],
        "lines": [
            (
                method,
                method if method in (PLAIN, TEACHER) else "",
                [_cell(cells.get((method, place)), largest) for place in places],
            )
            for method in distinct(row.cell.method for row in rows)
        ],
    }


def _cell(row: Row | None, largest: float) -> dict[str, Any] | None:
    """A cell's text, and its colour where it has a difference; ``None`` for an empty cell."""
    if row is None or (row.mean is None and not row.cell.incomplete):
        return None
    cell = {"text": "", "missing": "", "colour": "", "share": "", "gain": "", "significant": False}
    if row.mean is None:
        return {**cell, "missing": missing_reason(row.cell)}
    cell |= {"text": format_number(row.mean.mean, row.metric)}
    if row.gain is None or not largest:
        return cell
    better = (row.gain.mean > 0) == (row.metric.better != "lower")
    return {
        **cell,
        "colour": "accent" if better else "second",
        "share": f"{100 * abs(row.gain.mean) / largest:.0f}",
        "gain": format_number(row.gain.mean, row.metric, "+"),
        "significant": significance(row) in ("above", "below"),
    }
