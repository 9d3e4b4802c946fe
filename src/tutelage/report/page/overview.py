"""The overview: every method under every condition, coloured by its difference to the plain student."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from tutelage.report.conclusions import directions, significance
from tutelage.report.page.markup import distinct, format_number
from tutelage.studies import PLAIN, TEACHER
from tutelage.studies.results import Results, Row, missing_reason


def overview(results: Results, rows: Sequence[Row]) -> str:
    """A table of methods and conditions with pairs, as a heat map; empty where there is one condition and pair."""
    metric = rows[0].metric
    places = distinct((row.cell.condition, row.cell.pair) for row in rows)
    if len(places) < 2:
        return ""
    cells = {(row.cell.method, (row.cell.condition, row.cell.pair)): row for row in rows}
    widest = max((abs(row.gain.mean) for row in rows if row.gain is not None), default=0.0)
    several = len({pair for _, pair in places}) > 1
    heads = "".join(
        f'<th scope="col">{escape(results.label(condition))}'
        + (f" <span>{escape(' → '.join(pair))}</span>" if several else "")
        + "</th>"
        for condition, pair in places
    )
    lines = "".join(
        f'<tr class="{kind}"><th scope="row">{escape(method)}</th>'
        + "".join(_cell(cells.get((method, place)), widest) for place in places)
        + "</tr>"
        for method in distinct(row.cell.method for row in rows)
        for kind in [method if method in (PLAIN, TEACHER) else ""]
    )
    title, unit = metric.title, ", %" if metric.percent else ""
    above, below = directions(metric)
    first, second = (above, below) if metric.better != "lower" else (below, above)
    return (
        f'<p class="note">{escape(title.capitalize())}{unit}, mean over seeds. Blue: {first} the plain student of the '
        f"same column; orange: {second} it; the darker, the larger the difference. "
        "Underlined: clearly different after Holm's correction.</p>"
        '<div class="wide heat" tabindex="0" role="region" aria-label="Overview of methods and conditions, scrolls '
        f'sideways"><table><caption>{escape(title.capitalize())} of each method under each condition</caption>'
        f'<thead><tr><th scope="col">method</th>{heads}</tr></thead><tbody>{lines}</tbody></table></div>'
    )


def _cell(row: Row | None, widest: float) -> str:
    if row is None:
        return "<td></td>"
    if row.mean is None:
        missing = (
            f'<abbr class="missing" title="{escape(missing_reason(row.cell))}">missing</abbr>'
            if row.cell.incomplete
            else ""
        )
        return f"<td>{missing}</td>"
    text = format_number(row.mean.mean, row.metric)
    if row.gain is None or not widest:
        return f"<td>{text}</td>"
    good = (row.gain.mean > 0) == (row.metric.better != "lower")
    share = 100 * abs(row.gain.mean) / widest
    clear = ' class="clear"' if significance(row) in ("above", "below") else ""
    about = f"difference to plain {format_number(row.gain.mean, row.metric, '+')}"
    colour = "accent" if good else "second"
    return f'<td{clear} title="{about}" style="--heat:var(--{colour});--share:{share:.0f}%">{text}</td>'
