"""Means over seeds with the intervals that so few of them allow."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FEWEST_SEEDS = 3
"""So many values are needed for the interval of a mean to be worth showing: of two it is 12.7 standard errors wide."""


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


def bootstrap_interval(
    values: Sequence[float], confidence: float = 0.95, resamples: int = 9999, seed: int = 0
) -> Interval:
    """The mean and its bootstrap interval: BCa (Efron 1987), or percentiles where BCa has no value.

    Of few values it is too narrow: it never leaves their range. One value says nothing about its spread: ``low`` and
    ``high`` are NaN then.

    Args:
        values: one per seed.
        confidence: in (0, 1).
        resamples: samples drawn with replacement.
        seed: of the drawing; the same one gives the same interval.

    Raises:
        ValueError: as in ``mean_interval``.
    """
    from scipy import stats

    known = mean_interval(values, confidence)
    sample = np.asarray(values, dtype=np.float64)
    if len(sample) == 1 or np.ptp(sample) == 0:
        return known
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scipy warns where BCa has no value, and so do its divisions
            found = stats.bootstrap(
                (sample,),
                np.mean,
                n_resamples=resamples,
                confidence_level=confidence,
                method=method,
                random_state=np.random.default_rng(seed),
            ).confidence_interval
        if math.isfinite(found.low) and math.isfinite(found.high):
            break
    return Interval(known.mean, float(found.low), float(found.high), known.n)


def bootstrap_difference(
    a: Sequence[float], b: Sequence[float], confidence: float = 0.95, resamples: int = 9999, seed: int = 0
) -> Interval:
    """The mean of a - b and its bootstrap interval, where ``a[i]`` and ``b[i]`` share a seed: pairs are drawn.

    Raises:
        ValueError: not as many of one as of the other, or as in ``mean_interval``.
    """
    if len(a) != len(b):
        raise ValueError(f"pairs need as many of each, got {len(a)} and {len(b)}")
    return bootstrap_interval([x - y for x, y in zip(a, b, strict=True)], confidence, resamples, seed)


def wins(a: Sequence[float], b: Sequence[float], *, higher_is_better: bool = True) -> float:
    """In how many pairs ``a[i]`` is better than ``b[i]``; a tie counts half.

    Raises:
        ValueError: not as many of one as of the other.
    """
    if len(a) != len(b):
        raise ValueError(f"pairs need as many of each, got {len(a)} and {len(b)}")
    better, worse = (a, b) if higher_is_better else (b, a)
    return sum(float(x > y) + 0.5 * float(x == y) for x, y in zip(better, worse, strict=True))


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
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)  # scipy's, for nearly equal differences
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


def average_ranks(blocks: Sequence[Sequence[float]], *, higher_is_better: bool = True) -> list[float]:
    """The mean rank of each method over blocks; 1 is the best, and tied methods share the mean of their ranks.

    Args:
        blocks: one value a method in each, the methods in the same order.
        higher_is_better: which end has rank 1.

    Raises:
        ValueError: no block, or blocks of different lengths.
    """
    from scipy import stats

    values = _as_blocks(blocks)
    ranks = stats.rankdata(-values if higher_is_better else values, axis=1)
    return [float(rank) for rank in ranks.mean(axis=0)]


def friedman_p_value(blocks: Sequence[Sequence[float]]) -> float:
    """How often average ranks this far apart come about by chance: Friedman's test, in its chi-squared form.

    It needs three methods or more. Where all methods tie in every block it is 1.

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
    """How far apart two average ranks must lie to differ: Nemenyi's q sqrt(k (k + 1) / 6 N), by Demsar 2006.

    q is the upper ``alpha`` quantile of the studentised range of k values with infinitely many degrees of freedom,
    over sqrt(2); k are the methods, N the blocks.

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
        raise ValueError("ranks need a block or more, and a value of every method in each")
    return np.asarray(blocks, dtype=np.float64)
