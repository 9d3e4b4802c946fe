"""Intervals against scipy's own and against a textbook's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from tutelage.studies.statistics import Interval, mean_interval, paired_difference


@pytest.mark.parametrize("n", [2, 3, 30])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
def test_equals_scipy(n: int, confidence: float) -> None:
    values = np.random.default_rng(n).normal(70, 3, n)
    low, high = stats.t.interval(confidence, n - 1, loc=values.mean(), scale=stats.sem(values))
    got = mean_interval(values.tolist(), confidence)
    assert (got.mean, got.low, got.high, got.n) == pytest.approx((values.mean(), low, high, n))


def test_by_hand() -> None:
    """1 .. 5: mean 3, s^2 = 2.5, and every table gives t = 2.776 for 4 degrees of freedom at 95 %."""
    half = 2.776 * math.sqrt(2.5 / 5)
    got = mean_interval([1, 2, 3, 4, 5])
    assert (got.mean, got.low, got.high) == pytest.approx((3, 3 - half, 3 + half), abs=1e-3)


def test_one_value_has_no_interval() -> None:
    got = mean_interval([0.7])
    assert (got.mean, got.n) == (0.7, 1)
    assert math.isnan(got.low)
    assert math.isnan(got.high)


def test_equal_values_have_a_point_for_an_interval() -> None:
    assert mean_interval([0.5, 0.5, 0.5]) == Interval(0.5, 0.5, 0.5, 3)


def test_pairs_are_compared_within_a_seed() -> None:
    """Seeds that differ by far more than the two methods do: the difference is certain all the same."""
    a, b = [10.1, 20.2, 30.3], [10.0, 20.0, 30.0]
    got = paired_difference(a, b, 0.9)
    test = stats.ttest_rel(a, b)
    low, high = test.confidence_interval(0.9)
    assert (got.mean, got.low, got.high, got.n) == pytest.approx((0.2, low, high, 3))
    assert got.low > 0
    assert mean_interval(a, 0.9).low < mean_interval(b, 0.9).high
    assert paired_difference(b, a, 0.9).high == pytest.approx(-low)


def test_pairs_of_one() -> None:
    got = paired_difference([3.0], [1.0])
    assert (got.mean, got.n) == (2.0, 1)
    assert math.isnan(got.low)


def test_what_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="got none"):
        mean_interval([])
    with pytest.raises(ValueError, match="got 2 and 3"):
        paired_difference([1, 2], [1, 2, 3])


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0, -0.5])
def test_a_confidence_that_is_none(confidence: float) -> None:
    with pytest.raises(ValueError, match=r"\(0, 1\)"):
        mean_interval([1, 2], confidence)
