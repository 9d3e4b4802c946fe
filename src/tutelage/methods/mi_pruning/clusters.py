"""Which units remain: exact k-means of their scores, and the controls."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

Choice = Literal["cluster", "rank", "random"]


def optimal_clusters(values: Sequence[float], count: int) -> list[list[int]]:
    """The partition of numbers into clusters with the least sum of squared distances from the clusters' means.

    Dynamic programming over the sorted values (Wang, Song 2011). D[m, k], the least sum for the first m values in k
    clusters, is the minimum over j of D[j, k - 1] and the sum of the cluster of the values j .. m - 1.

    Args:
        values: n finite numbers.
        count: 1 to n clusters, none of which is empty. Equal values are sorted by their position.

    Returns:
        The positions of each cluster, in increasing order; clusters in the order of their values.
    """
    if not 1 <= count <= len(values):
        raise ValueError(f"{len(values)} values cannot form {count} clusters")
    order = sorted(range(len(values)), key=lambda position: (values[position], position))
    mean = sum(values) / len(values)  # against cancellation
    sums, squares = [0.0], [0.0]
    for position in order:
        sums.append(sums[-1] + values[position] - mean)
        squares.append(squares[-1] + (values[position] - mean) ** 2)

    def cost(start: int, end: int) -> float:
        return max(0.0, squares[end] - squares[start] - (sums[end] - sums[start]) ** 2 / (end - start))

    best = {(0, 0): (0.0, 0)}  # the least sum, and where the last cluster begins
    for clusters in range(1, count + 1):
        for end in range(clusters, len(order) + 1):
            starts = [start for start in range(clusters - 1, end) if (start, clusters - 1) in best]
            best[end, clusters] = min((best[start, clusters - 1][0] + cost(start, end), start) for start in starts)
    groups, end = [], len(order)
    for clusters in range(count, 0, -1):
        start = best[end, clusters][1]
        groups.append(sorted(order[start:end]))
        end = start
    return groups[::-1]


def remaining(
    scores: Sequence[float], count: int, choose: Choice = "cluster", *, last: bool = False, seed: int = 0
) -> list[int]:
    """The positions of the units that remain, in increasing order.

    Args:
        scores: one per unit, by depth; not read by "random".
        count: how many remain, 1 to the number of units.
        choose: "cluster" takes one unit of each of ``count`` clusters; "rank" the units with the highest scores, of
            equal ones the first; "random" any.
        last: whether to take the deepest unit of a cluster, and not the first one.
        seed: of "random".
    """
    if choose == "random":
        return sorted(random.Random(seed).sample(range(len(scores)), count))
    if choose == "rank":
        return sorted(sorted(range(len(scores)), key=lambda position: (-scores[position], position))[:count])
    return sorted(group[-1 if last else 0] for group in optimal_clusters(scores, count))
