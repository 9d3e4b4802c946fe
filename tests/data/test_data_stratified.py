"""Nested stratified subsets."""

from __future__ import annotations

import numpy as np
import pytest

from tutelage.data.stratified import nested_order, ranks_in_strata


def test_ranks_count_from_zero_in_each_stratum_in_random_order() -> None:
    strata = np.array([3, 3, -1, 3, 0, -1, 3])
    ranks = ranks_in_strata(strata, np.random.default_rng(0))
    for stratum in (-1, 0, 3):
        assert sorted(ranks[strata == stratum]) == list(range((strata == stratum).sum()))
    others = [ranks_in_strata(strata, np.random.default_rng(seed)).tolist() for seed in range(20)]
    assert ranks.tolist() in others
    assert len({tuple(entry) for entry in others}) > 5


@pytest.mark.parametrize("seed", range(5))
def test_each_beginning_of_a_nested_order_is_stratified(seed: int) -> None:
    generator = np.random.default_rng(seed)
    strata = np.repeat(np.arange(7), generator.integers(20, 60, 7))
    generator.shuffle(strata)
    order = nested_order(strata, np.random.default_rng(seed))
    assert sorted(order) == list(range(len(strata)))
    assert np.array_equal(order, nested_order(strata, np.random.default_rng(seed)))
    assert not np.array_equal(order, nested_order(strata, np.random.default_rng(seed + 1)))
    total = np.bincount(strata)
    for samples in range(7, len(strata) + 1):
        counts = np.bincount(strata[order[:samples]], minlength=7)
        assert counts.min() >= 1
        assert np.abs(counts - total * samples / len(strata)).max() < 1.5


def test_equal_classes_have_equal_numbers_give_or_take_one() -> None:
    strata = np.arange(400) % 10
    order = nested_order(strata, np.random.default_rng(0))
    for samples in range(10, 401):
        counts = np.bincount(strata[order[:samples]], minlength=10)
        assert counts.max() - counts.min() <= 1


def test_rare_strata_come_first() -> None:
    strata = np.array([0] * 97 + [1, 2, -1])
    assert sorted(strata[nested_order(strata, np.random.default_rng(0))[:4]]) == [-1, 0, 1, 2]
