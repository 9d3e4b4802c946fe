"""Exact clusters of numbers, and which units remain."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from statistics import fmean

import pytest

from tutelage.methods.mi_pruning.clusters import optimal_clusters, remaining


def spread(values: Sequence[float], groups: Sequence[Sequence[int]]) -> float:
    """The sum of squared distances from the means of the clusters."""
    clusters = [[values[position] for position in group] for group in groups]
    return sum((value - fmean(cluster)) ** 2 for cluster in clusters for value in cluster)


def partitions(items: list[int], count: int) -> Iterator[list[list[int]]]:
    """All partitions into non-empty groups."""
    if len(items) < count or count == 0:
        if not items and count == 0:
            yield []
        return
    first, *others = items
    for rest in partitions(others, count - 1):
        yield [[first], *rest]
    for rest in partitions(others, count):
        for number in range(len(rest)):
            yield [*rest[:number], [first, *rest[number]], *rest[number + 1 :]]


@pytest.mark.parametrize("seed", range(12))
def test_clusters_are_optimal(seed: int) -> None:
    generator = random.Random(seed)
    size = generator.randint(1, 8)
    # Ties and values whose squares are large beside their differences.
    values = [100 * (seed % 2) + generator.choice([0.1, 0.5, generator.random()]) for _ in range(size)]
    for count in range(1, size + 1):
        groups = optimal_clusters(values, count)
        assert sorted(position for group in groups for position in group) == list(range(size))
        assert len(groups) == count
        assert all(groups)
        least = min(spread(values, other) for other in partitions(list(range(size)), count))
        assert abs(spread(values, groups) - least) < 1e-9


def test_clusters_of_twelve_values_by_their_borders() -> None:
    generator = random.Random(3)
    values = [generator.gauss(0, 1) for _ in range(12)]
    order = sorted(range(12), key=values.__getitem__)
    least = min(
        spread(values, [order[:a], order[a:b], order[b:c], order[c:]])
        for a in range(1, 10)
        for b in range(a + 1, 11)
        for c in range(b + 1, 12)
    )
    assert abs(spread(values, optimal_clusters(values, 4)) - least) < 1e-12


def test_equal_values_are_ordered_by_depth() -> None:
    assert optimal_clusters([5.0, 1.0, 5.0, 1.0], 2) == [[1, 3], [0, 2]]
    assert remaining([5.0, 1.0, 5.0, 1.0], 2) == [0, 1]
    assert remaining([5.0, 1.0, 5.0, 1.0], 2, last=True) == [2, 3]
    assert remaining([2.0, 2.0, 2.0], 1) == [0]
    assert sorted(map(len, optimal_clusters([2.0, 2.0, 2.0], 2))) == [1, 2]  # none is empty


def test_controls() -> None:
    scores = [0.3, 0.9, 0.3, 0.7, 0.1]
    assert remaining(scores, 3, "rank") == [0, 1, 3]
    chosen = {tuple(remaining(scores, 2, "random", seed=seed)) for seed in range(60)}
    assert len(chosen) == 10  # all pairs
    assert all(len(set(pair)) == 2 and list(pair) == sorted(pair) for pair in chosen)
    assert remaining(scores, 2, "random", seed=4) == remaining([0.0] * 5, 2, "random", seed=4)
    for choose in ("cluster", "rank", "random"):
        assert remaining(scores, 5, choose) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("count", [0, 4])
def test_a_wrong_number_of_clusters(count: int) -> None:
    with pytest.raises(ValueError, match=f"3 values cannot form {count} clusters"):
        optimal_clusters([1.0, 2.0, 3.0], count)
