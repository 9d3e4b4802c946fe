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


def paired_p_value(a: Sequence[float], b: Sequence[float]) -> float:
    """How often a difference in means this far from 0 comes about by chance: the two-sided paired t-test.

    Two values or more of each; where all differences are equal it is 0, or 1 if they are 0.

    Raises:
        ValueError: not as many of one as of the other, or fewer than two.
    """
    from scipy import stats

    if len(a) != len(b) or len(a) < 2:
        raise ValueError(f"a paired test needs two pairs or more and as many of each, got {len(a)} and {len(b)}")
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    if np.ptp(difference) == 0:
        return float(difference[0] == 0)
    return float(stats.ttest_1samp(difference, 0).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for being one of many: Holm 1979. Below 0.05 each, all claims together are wrong in 5 %.

    The k-th smallest of n becomes the largest of (n - i + 1) p_i over i up to k, at most 1.
    """
    order = np.argsort(p_values, kind="stable")
    scaled = np.asarray(p_values, dtype=np.float64)[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return [float(p) for p in adjusted]
