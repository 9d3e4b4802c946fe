"""Means over seeds, their intervals, and tests of differences between methods."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FEWEST_SEEDS = 3
"""The fewest values for which the interval of a mean is shown: for two it is mean -+ 12.7 standard errors."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean of ``n`` values and its confidence interval."""

    mean: float
    low: float
    high: float
    n: int


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Return the mean and its two-sided Student t interval, mean -+ t(n - 1) s / sqrt(n).

    For one value, ``low`` and ``high`` are NaN.

    Args:
        values: one per seed, assumed to be independent and roughly normal.
        confidence: the coverage of the interval, in (0, 1).

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
    """Return the mean of a - b and its t interval, where ``a[i]`` and ``b[i]`` share a seed.

    The variance between seeds cancels: an interval above 0 means that a is larger.

    Raises:
        ValueError: the lengths differ, or as in ``mean_interval``.
    """
    if len(a) != len(b):
        raise ValueError(f"pairs need equal numbers of values, got {len(a)} and {len(b)}")
    return mean_interval([x - y for x, y in zip(a, b, strict=True)], confidence)


def detectable_difference(difference: Interval, power: float = 0.8) -> float:
    """Return the smallest true difference that a paired t-test at 5 % would detect with this power.

    It follows from the spread of the observed differences, that is from the width of their 95 % t interval, by the
    usual approximation (t(0.975) + t(power)) standard errors.

    Args:
        difference: the result of ``paired_difference``, of two pairs or more.
        power: in (0, 1).
    """
    from scipy import stats

    student_t = stats.t(difference.n - 1)
    return float((difference.high - difference.low) / 2 * (1 + student_t.ppf(power) / student_t.ppf(0.975)))


def bootstrap_interval(
    values: Sequence[float], confidence: float = 0.95, resamples: int = 9999, seed: int = 0
) -> Interval:
    """Return the mean and its bootstrap interval: BCa (Efron 1987), or percentiles where BCa is undefined.

    For few values it is too narrow: it lies within their range. For one value, ``low`` and ``high`` are NaN.

    Args:
        values: one per seed.
        confidence: in (0, 1).
        resamples: the number of samples drawn with replacement.
        seed: the seed of the resampling.

    Raises:
        ValueError: as in ``mean_interval``.
    """
    from scipy import stats

    interval = mean_interval(values, confidence)
    sample = np.asarray(values, dtype=np.float64)
    if len(sample) == 1 or np.ptp(sample) == 0:
        return interval
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scipy and its divisions warn where BCa is undefined
            bounds = stats.bootstrap(
                (sample,),
                np.mean,
                n_resamples=resamples,
                confidence_level=confidence,
                method=method,
                random_state=np.random.default_rng(seed),
            ).confidence_interval
        if math.isfinite(bounds.low) and math.isfinite(bounds.high):
            break
    return Interval(interval.mean, float(bounds.low), float(bounds.high), interval.n)


def bootstrap_difference(
    a: Sequence[float], b: Sequence[float], confidence: float = 0.95, resamples: int = 9999, seed: int = 0
) -> Interval:
    """Return the mean of a - b and its bootstrap interval over pairs, where ``a[i]`` and ``b[i]`` share a seed.

    Raises:
        ValueError: the lengths differ, or as in ``mean_interval``.
    """
    if len(a) != len(b):
        raise ValueError(f"pairs need equal numbers of values, got {len(a)} and {len(b)}")
    return bootstrap_interval([x - y for x, y in zip(a, b, strict=True)], confidence, resamples, seed)


def wins(a: Sequence[float], b: Sequence[float], *, higher_is_better: bool = True) -> float:
    """Return the number of pairs in which ``a[i]`` is better than ``b[i]``; a tie counts half.

    Raises:
        ValueError: the lengths differ.
    """
    if len(a) != len(b):
        raise ValueError(f"pairs need equal numbers of values, got {len(a)} and {len(b)}")
    better, worse = (a, b) if higher_is_better else (b, a)
    return sum(float(x > y) + 0.5 * float(x == y) for x, y in zip(better, worse, strict=True))


def paired_p_value(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the p-value of the two-sided paired t-test.

    If all differences are equal it is 0, or 1 if they are 0.

    Raises:
        ValueError: the lengths differ, or there are fewer than two pairs.
    """
    from scipy import stats

    if len(a) != len(b) or len(a) < 2:
        raise ValueError(f"a paired test needs equal numbers of values, two or more, got {len(a)} and {len(b)}")
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    if np.ptp(difference) == 0:
        return float(difference[0] == 0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)  # scipy's, for nearly equal differences
        return float(stats.ttest_1samp(difference, 0).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for multiple comparisons (Holm 1979), which controls the family-wise error rate.

    The adjusted k-th smallest of n p-values is the maximum of (n - i + 1) p_i over i <= k, at most 1.
    """
    order = np.argsort(p_values, kind="stable")
    scaled = np.asarray(p_values, dtype=np.float64)[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return [float(p) for p in adjusted]


def average_ranks(blocks: Sequence[Sequence[float]], *, higher_is_better: bool = True) -> list[float]:
    """Return the mean rank of each method over blocks; 1 is the best, and tied methods share their mean rank.

    Args:
        blocks: each has one value per method, with the methods in the same order.
        higher_is_better: whether the highest value has rank 1.

    Raises:
        ValueError: there is no block, or the lengths of the blocks differ.
    """
    from scipy import stats

    values = _as_blocks(blocks)
    ranks = stats.rankdata(-values if higher_is_better else values, axis=1)
    return [float(rank) for rank in ranks.mean(axis=0)]


def friedman_p_value(blocks: Sequence[Sequence[float]]) -> float:
    """Return the p-value of Friedman's test in its chi-squared form; 1 if all methods tie in every block.

    Raises:
        ValueError: fewer than three methods, or as in ``average_ranks``.
    """
    from scipy import stats

    values = _as_blocks(blocks)
    if values.shape[1] < 3:
        raise ValueError(f"Friedman's test needs three methods or more, got {values.shape[1]}")
    if np.all(np.ptp(values, axis=1) == 0):
        return 1.0
    return float(stats.friedmanchisquare(*values.T).pvalue)


def critical_difference(methods: int, blocks: int, alpha: float = 0.05) -> float:
    """Return Nemenyi's critical difference of average ranks, q sqrt(k (k + 1) / 6 N) (Demsar 2006).

    q is the upper ``alpha`` quantile of the studentised range of k values with infinitely many degrees of freedom,
    over sqrt(2); k is the number of methods, N the number of blocks.

    Raises:
        ValueError: fewer than two methods, or no block.
    """
    from scipy import stats

    if methods < 2 or blocks < 1:
        raise ValueError(f"a critical difference needs two methods and a block, got {methods} and {blocks}")
    q = float(stats.studentized_range.ppf(1 - alpha, methods, math.inf)) / math.sqrt(2)
    return q * math.sqrt(methods * (methods + 1) / (6 * blocks))


def _as_blocks(blocks: Sequence[Sequence[float]]) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    if len({len(block) for block in blocks}) != 1:
        raise ValueError("ranks need one block or more, each with a value of every method")
    return np.asarray(blocks, dtype=np.float64)
