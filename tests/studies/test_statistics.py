"""Intervals, tests and ranks, against scipy, equations and textbook examples."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from tutelage.studies.statistics import (
    Interval,
    average_ranks,
    bootstrap_difference,
    bootstrap_interval,
    critical_difference,
    detectable_difference,
    friedman_p_value,
    holm,
    mean_interval,
    paired_difference,
    paired_p_value,
    wins,
)


@pytest.mark.parametrize("n", [2, 3, 30])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
def test_t_interval_equals_scipy(n: int, confidence: float) -> None:
    values = np.random.default_rng(n).normal(70, 3, n)
    low, high = stats.t.interval(confidence, n - 1, loc=values.mean(), scale=stats.sem(values))
    interval = mean_interval(values.tolist(), confidence)
    assert (interval.mean, interval.low, interval.high, interval.n) == pytest.approx((values.mean(), low, high, n))


def test_t_interval_by_hand() -> None:
    """1 .. 5: mean 3, s^2 = 2.5, and every table gives t = 2.776 for 4 degrees of freedom at 95 %."""
    half = 2.776 * math.sqrt(2.5 / 5)
    interval = mean_interval([1, 2, 3, 4, 5])
    assert (interval.mean, interval.low, interval.high) == pytest.approx((3, 3 - half, 3 + half), abs=1e-3)


def test_one_value_has_no_interval() -> None:
    interval = mean_interval([0.7])
    assert (interval.mean, interval.n) == (0.7, 1)
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)


def test_interval_of_equal_values_is_a_point() -> None:
    assert mean_interval([0.5, 0.5, 0.5]) == Interval(0.5, 0.5, 0.5, 3)


def test_paired_difference_removes_variance_between_seeds() -> None:
    """Seeds that differ by far more than the two methods do: the difference is certain all the same."""
    a, b = [10.1, 20.2, 30.3], [10.0, 20.0, 30.0]
    difference = paired_difference(a, b, 0.9)
    test = stats.ttest_rel(a, b)
    low, high = test.confidence_interval(0.9)
    assert (difference.mean, difference.low, difference.high, difference.n) == pytest.approx((0.2, low, high, 3))
    assert difference.low > 0
    assert mean_interval(a, 0.9).low < mean_interval(b, 0.9).high
    assert paired_difference(b, a, 0.9).high == pytest.approx(-low)


def test_difference_of_one_pair() -> None:
    difference = paired_difference([3.0], [1.0])
    assert (difference.mean, difference.n) == (2.0, 1)
    assert math.isnan(difference.low)


def test_empty_and_unequal_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="got none"):
        mean_interval([])
    with pytest.raises(ValueError, match="got 2 and 3"):
        paired_difference([1, 2], [1, 2, 3])


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0, -0.5])
def test_invalid_confidence_is_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match=r"\(0, 1\)"):
        mean_interval([1, 2], confidence)


@pytest.mark.parametrize("n", [2, 5, 12])
def test_p_value_equals_scipy_paired_t_test(n: int) -> None:
    generator = np.random.default_rng(n)
    a, b = generator.normal(70, 3, n).tolist(), generator.normal(69, 3, n).tolist()
    assert paired_p_value(a, b) == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert paired_p_value(b, a) == pytest.approx(paired_p_value(a, b))


def test_p_value_agrees_with_interval() -> None:
    for seed in range(40):
        a, b = np.random.default_rng(seed).normal((1.5, 0), 1, (5, 2)).T.tolist()
        gain = paired_difference(a, b)
        assert (paired_p_value(a, b) < 0.05) == (gain.low > 0 or gain.high < 0)


def test_p_value_of_equal_differences() -> None:
    assert paired_p_value([2.0, 3.0], [1.0, 2.0]) == 0
    assert paired_p_value([2.0, 3.0], [2.0, 3.0]) == 1
    with pytest.raises(ValueError, match="two or more"):
        paired_p_value([1.0], [2.0])
    with pytest.raises(ValueError, match="equal numbers of values"):
        paired_p_value([1.0, 2.0], [2.0])


def test_holm_equals_its_definition() -> None:
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


# --- the bootstrap


def test_bootstrap_is_close_to_t_interval_for_many_values() -> None:
    a, b = np.random.default_rng(0).normal((0.5, 0), 1, (200, 2)).T.tolist()
    bootstrap, t_interval = bootstrap_difference(a, b), paired_difference(a, b)
    assert (bootstrap.mean, bootstrap.n) == (t_interval.mean, t_interval.n)
    assert (bootstrap.low, bootstrap.high) == pytest.approx((t_interval.low, t_interval.high), abs=0.02)


def test_bca_equals_its_equations() -> None:
    """Efron 1987: percentiles of the same resamples, moved by the bias z0 and the acceleration of the jackknife."""
    values = np.random.default_rng(3).exponential(1, 12)
    interval = bootstrap_interval(values.tolist(), 0.9, resamples=2000, seed=5)
    draws = stats.bootstrap(
        (values,), np.mean, n_resamples=2000, method="percentile", random_state=np.random.default_rng(5)
    ).bootstrap_distribution
    jackknife_means = (values.sum() - values) / 11
    u = jackknife_means.mean() - jackknife_means
    acceleration = (u**3).sum() / (6 * (u**2).sum() ** 1.5)
    z0 = stats.norm.ppf(((draws < values.mean()).mean() + (draws <= values.mean()).mean()) / 2)
    ends = []
    for z in stats.norm.ppf([0.05, 0.95]):
        share = stats.norm.cdf(z0 + (z0 + z) / (1 - acceleration * (z0 + z)))
        ends.append(float(np.percentile(draws, 100 * share)))
    assert [interval.low, interval.high] == pytest.approx(ends, rel=1e-3)


def test_bootstrap_is_reproducible_by_seed() -> None:
    values = [0.1, 0.5, 0.2, 0.9]
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(values, resamples=99) != bootstrap_interval(values, resamples=99, seed=1)
    assert bootstrap_interval(values, 0.5).high < bootstrap_interval(values, 0.99).high


def test_bootstrap_of_one_or_equal_values() -> None:
    assert bootstrap_difference([2.0, 3.0, 4.0], [1.0, 2.0, 3.0]) == Interval(1.0, 1.0, 1.0, 3)
    single_pair = bootstrap_difference([2.0], [0.5])
    assert (single_pair.mean, single_pair.n) == (1.5, 1)
    assert math.isnan(single_pair.low)
    assert math.isnan(single_pair.high)
    with pytest.raises(ValueError, match="got 1 and 2"):
        bootstrap_difference([1.0], [1.0, 2.0])


def test_percentiles_replace_undefined_bca(monkeypatch: pytest.MonkeyPatch) -> None:
    methods = []
    original = stats.bootstrap

    def without_bca(*arguments: object, method: str, **options: object) -> object:
        methods.append(method)
        if method == "BCa":
            return SimpleNamespace(confidence_interval=SimpleNamespace(low=math.nan, high=math.nan))
        return original(*arguments, method=method, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(stats, "bootstrap", without_bca)
    interval = bootstrap_interval([1.0, 2.0, 4.0])
    assert methods == ["BCa", "percentile"]
    assert 1 <= interval.low < interval.mean < interval.high <= 4


@pytest.mark.parametrize("values", [[0.0, 1.0], [1.0, 1.0, 2.0], [0.0, 0.0, 0.0, 0.0, 1e-300], [1e15, 1e15 + 1, 1e15]])
def test_bootstrap_of_few_values_is_finite(values: list[float]) -> None:
    interval = bootstrap_interval(values)
    assert min(values) <= interval.low <= interval.high <= max(values)


# --- wins and ranks


def test_wins() -> None:
    assert wins([1, 2, 3], [0, 2, 4]) == 1.5
    assert wins([1, 2, 3, 3], [0, 2, 4, 4], higher_is_better=False) == 2.5
    assert wins([], []) == 0
    with pytest.raises(ValueError, match="got 1 and 2"):
        wins([1], [1, 2])


def test_average_ranks_by_hand() -> None:
    blocks = [[0.9, 0.8, 0.8, 0.1], [0.5, 0.6, 0.7, 0.4]]
    assert average_ranks(blocks) == [2.0, 2.25, 1.75, 4.0]
    assert average_ranks(blocks, higher_is_better=False) == [3.0, 2.75, 3.25, 1.0]
    assert average_ranks([[1.0]]) == [1.0]
    for ranks_input in ([], [[1.0, 2.0], [1.0]]):
        with pytest.raises(ValueError, match="a value of every method"):
            average_ranks(ranks_input)


@pytest.mark.parametrize(("methods", "q"), [(2, 1.960), (3, 2.343), (5, 2.728), (9, 3.102), (10, 3.164)])
def test_critical_difference_has_q_of_demsar_table_5(methods: int, q: float) -> None:
    assert critical_difference(methods, 14) == pytest.approx(q * math.sqrt(methods * (methods + 1) / 84), rel=5e-4)


def test_demsar_example() -> None:
    """Section 3.2.4: four classifiers on 14 sets, 2.569 sqrt(4 5 / (6 14)) = 1.25; and at 10 %, 2.291 for q."""
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)
    assert critical_difference(4, 14, 0.1) == pytest.approx(1.12, abs=0.005)
    for methods, blocks in ((1, 3), (3, 0)):
        with pytest.raises(ValueError, match="two methods and a block"):
            critical_difference(methods, blocks)


def test_friedman_equals_its_equation() -> None:
    values = np.random.default_rng(2).normal((0, 0.3, 1.0, 0.2), 1, (8, 4))
    N, k = values.shape
    ranks = np.array(average_ranks(values.tolist()))
    chi = 12 * N / (k * (k + 1)) * ((ranks**2).sum() - k * (k + 1) ** 2 / 4)
    assert friedman_p_value(values.tolist()) == pytest.approx(stats.chi2.sf(chi, k - 1))
    assert friedman_p_value([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]) == 1
    with pytest.raises(ValueError, match="three methods"):
        friedman_p_value([[1.0, 2.0]])


@pytest.mark.parametrize("n", [5, 8, 20])
def test_detectable_difference_is_detected_with_its_power(n: int) -> None:
    from scipy import stats

    half = float(stats.t.ppf(0.975, n - 1)) / n**0.5  # differences with a standard deviation of 1
    difference = detectable_difference(Interval(0.1, 0.1 - half, 0.1 + half, n))
    noncentral = stats.nct(n - 1, difference * n**0.5)
    t = stats.t.ppf(0.975, n - 1)
    assert noncentral.sf(t) + noncentral.cdf(-t) == pytest.approx(0.8, abs=0.03)
