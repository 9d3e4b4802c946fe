"""Rows compared with a baseline, seed by seed: the statistics behind every table."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from statistics import stdev
from typing import Literal

from tutelage.errors import unknown
from tutelage.studies.statistics import (
    Interval,
    bootstrap_difference,
    bootstrap_interval,
    holm,
    mean_interval,
    paired_difference,
    paired_p_value,
    wins,
)

INTERVALS = {"t": (mean_interval, paired_difference), "bootstrap": (bootstrap_interval, bootstrap_difference)}


@dataclass(frozen=True)
class Comparison:
    """One metric of one row over seeds, and its paired difference to the baseline.

    Attributes:
        mean: over the row's seeds; ``None`` without values.
        deviation: standard deviation over seeds (n - 1); ``None`` for fewer than two.
        gain: row - baseline over the seeds that both have, also where lower is better; ``None`` for the baseline, and
            where either has no values.
        p: two-sided p-value of the gain by the paired t-test, unadjusted, whichever interval is used; ``None`` for
            fewer than two seeds.
        holm: ``p`` adjusted by Holm's method for all rows that have one.
        wins: on how many seeds the row is better than the baseline, ties counting half; ``None`` where neither
            direction of the metric is better.
    """

    mean: Interval | None
    deviation: float | None
    gain: Interval | None
    p: float | None
    holm: float | None
    wins: float | None


def compare_rows(
    rows: Mapping[str, Mapping[int, float]],
    baseline: str,
    *,
    better: Literal["higher", "lower"] | None = None,
    interval: str = "t",
    excluded: Collection[str] = (),
) -> dict[str, Comparison]:
    """Compare each row with the baseline over the seeds that both have, with Holm's correction for all rows.

    Args:
        rows: each row's values by seed; empty for a row without values.
        baseline: the name of the row that the others are compared with.
        better: the better direction of the metric, for ``wins``.
        interval: ``t`` for Student's t interval, ``bootstrap`` for a bootstrap interval of 9,999 resamples.
        excluded: rows that are not compared with the baseline.

    Raises:
        TutelageError: for an interval that does not exist.
    """
    if interval not in INTERVALS:
        raise unknown("interval", interval, INTERVALS)
    mean_of, difference_of = INTERVALS[interval]
    reference = rows.get(baseline, {})
    compared: dict[str, tuple[list[float], list[float]]] = {}
    for name, values in rows.items():
        common = [seed for seed in values if seed in reference]
        if common and name != baseline and name not in excluded:
            compared[name] = [values[seed] for seed in common], [reference[seed] for seed in common]
    p_values = {name: paired_p_value(*pair) for name, pair in compared.items() if len(pair[0]) > 1}
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    comparisons = {}
    for name, by_seed in rows.items():
        numbers, pair = list(by_seed.values()), compared.get(name)
        comparisons[name] = Comparison(
            mean=mean_of(numbers) if numbers else None,
            deviation=stdev(numbers) if len(numbers) > 1 else None,
            gain=difference_of(*pair) if pair else None,
            p=p_values.get(name),
            holm=adjusted.get(name),
            wins=wins(*pair, higher_is_better=better == "higher") if pair and better else None,
        )
    return comparisons
