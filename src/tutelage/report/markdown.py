"""Tables in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tutelage.report.conclusions import significance
from tutelage.studies.comparison import Comparison
from tutelage.studies.statistics import Interval, detectable_difference

SIGNIFICANT = "†"


@dataclass(frozen=True)
class Column:
    """How a table shows a metric.

    Attributes:
        title: the heading of the column.
        share: whether the metric is a share in [0, 1], shown in per cent.
        digits: number of decimal places.
    """

    title: str
    share: bool = True
    digits: int = 1

    def number(self, value: float, sign: str = "") -> str:
        """Format a value; ``sign="+"`` for differences."""
        scaled = round(100 * value, 10) if self.share else value  # 0.685, not 0.68499999999999994
        return f"{scaled:{sign}.{self.digits}f}"

    def mean_and_half(self, interval: Interval | None, sign: str = "") -> str:
        """The mean ± half the width of its interval; the mean alone if its ends are NaN; empty for ``None``."""
        if interval is None:
            return ""
        text = self.number(interval.mean, sign)
        if math.isnan(interval.low):
            return text
        return f"{text} ± {self.number((interval.high - interval.low) / 2)}"


def markdown_table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Format a table; cells are inserted as they are, so special characters must be escaped."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *lines))


def comparison_table(columns: Sequence[Column], compared: Sequence[Mapping[str, Comparison]]) -> str:
    """Format the mean of each row and metric, followed in brackets by its paired difference to the baseline.

    A difference is bold where its interval excludes 0, and marked with ``SIGNIFICANT`` where it also differs from 0
    after Holm's correction.

    Args:
        columns: one for each metric.
        compared: for each metric its comparisons by row; all metrics have the same rows.
    """
    lines = []
    for row in compared[0]:
        cells = [_cell(comparisons[row], column) for column, comparisons in zip(columns, compared, strict=True)]
        means = [comparisons[row].mean for comparisons in compared]
        seeds = max((mean.n for mean in means if mean), default=0)
        lines.append([row, f"{seeds}", *cells])
    return markdown_table(["", "seeds", *(column.title for column in columns)], lines)


def detectable_note(column: Column, comparisons: Mapping[str, Comparison]) -> str:
    """Say which differences would have been detected in the rows whose interval includes 0; empty without such rows.

    Rows that equal the baseline on every seed are left out: without spread, nothing is known of what they would detect.
    """
    gains = [row.gain for row in comparisons.values() if row.gain is not None and row.gain.n > 1]
    limits = [detectable_difference(gain) for gain in gains if gain.low <= 0 <= gain.high and gain.low < gain.high]
    if not limits:
        return ""
    low, high = column.number(min(limits)), column.number(max(limits))
    size = low if low == high else f"{low} to {high}, depending on the row,"
    return (
        f"In *{column.title}*, where the interval includes 0, a difference of {size} would be detected with a power of "
        "80 % (paired t-test, uncorrected)."
    )


def comparison_note(baseline: str) -> str:
    """Explain the cells of ``comparison_table``."""
    return (
        f"Each cell is the mean over seeds ± half the width of its 95 % t interval. In brackets: the mean paired "
        f"difference to *{baseline}*, seed by seed, ± half the width of its 95 % t interval. Shares are in per cent, "
        "their differences in percentage points. A difference is bold where its own interval excludes 0; "
        f"{SIGNIFICANT} marks those that are also significant at 5 % after Holm's correction for all rows of the same "
        "column. A difference that is equal on every seed is never marked, since it shows no spread."
    )


def _cell(comparison: Comparison, column: Column) -> str:
    if comparison.mean is None:
        return "–"
    text = column.mean_and_half(comparison.mean)
    gain = comparison.gain
    if gain is None or math.isnan(gain.low):
        return text
    difference = column.mean_and_half(gain, "+")
    if not gain.low <= 0 <= gain.high:
        difference = f"**{difference}**"
    if significance(comparison) in ("above", "below"):
        difference += SIGNIFICANT
    return f"{text} ({difference})"
