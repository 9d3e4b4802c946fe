"""Intervals against scipy's own and against a textbook's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from tutelage.studies.statistics import Interval, holm, mean_interval, paired_difference, paired_p_value


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


@pytest.mark.parametrize("n", [2, 5, 12])
def test_the_p_value_is_that_of_the_paired_test(n: int) -> None:
    generator = np.random.default_rng(n)
    a, b = generator.normal(70, 3, n).tolist(), generator.normal(69, 3, n).tolist()
    assert paired_p_value(a, b) == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert paired_p_value(b, a) == pytest.approx(paired_p_value(a, b))


def test_the_p_value_agrees_with_the_interval() -> None:
    for seed in range(40):
        a, b = np.random.default_rng(seed).normal((1.5, 0), 1, (5, 2)).T.tolist()
        gain = paired_difference(a, b)
        assert (paired_p_value(a, b) < 0.05) == (gain.low > 0 or gain.high < 0)


def test_equal_differences_are_certain() -> None:
    assert paired_p_value([2.0, 3.0], [1.0, 2.0]) == 0
    assert paired_p_value([2.0, 3.0], [2.0, 3.0]) == 1
    with pytest.raises(ValueError, match="two pairs"):
        paired_p_value([1.0], [2.0])
    with pytest.raises(ValueError, match="as many"):
        paired_p_value([1.0, 2.0], [2.0])


def test_holms_correction_is_that_of_its_definition() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])  # 3 x 0.01; 2 x 0.03; then no smaller
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []
    for seed in range(20):
        p = np.random.default_rng(seed).uniform(0, 0.1, 7).tolist()
        ranked = sorted(range(7), key=lambda i: p[i])
        expected = [0.0] * 7
        for k, i in enumerate(ranked):
            expected[i] = min(1.0, max((7 - j) * p[ranked[j]] for j in range(k + 1)))
        assert holm(p) == pytest.approx(expected)
