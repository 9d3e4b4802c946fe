"""Means over seeds with the intervals that so few of them allow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean of ``n`` values and the interval its true value is believed to lie in."""

    mean: float
    low: float
    high: float
    n: int


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The mean and its two-sided Student t interval, mean -+ t(n - 1) s / sqrt(n).

    One value says nothing about its spread: ``low`` and ``high`` are NaN then.

    Args:
        values: one per seed, taken to be independent and roughly normal.
        confidence: how often such intervals hold the true mean, in (0, 1).

    Raises:
        ValueError: no value, or a confidence outside of (0, 1).
    """
    from scipy import stats

    if len(values) == 0:
        raise ValueError("a mean needs one value or more, got none")
    if not 0 < confidence < 1:
        raise ValueError(f"the confidence must lie in (0, 1), got {confidence}")
    sample = np.asarray(values, dtype=np.float64)
    n, mean = len(sample), float(sample.mean())
    if n == 1:
        return Interval(mean, math.nan, math.nan, n)
    # Not stats.t.interval, which is NaN where all values are equal.
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1) * sample.std(ddof=1) / math.sqrt(n))
    return Interval(mean, mean - half, mean + half, n)


def paired_difference(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> Interval:
    """The mean of a - b and its interval, where ``a[i]`` and ``b[i]`` share a seed.

    An interval above 0 says that a is larger, however much the seeds differ among themselves.

    Raises:
        ValueError: not as many of one as of the other, or as in ``mean_interval``.
    """
    if len(a) != len(b):
        raise ValueError(f"pairs need as many of each, got {len(a)} and {len(b)}")
    return mean_interval([x - y for x, y in zip(a, b, strict=True)], confidence)
