"""The units of the compact network: those that meet a target cost, by their importance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations_with_replacement, product

import torch
from torch import Tensor

from tutelage.methods.compact_cnn.resources import Resources

CLOSE = 0.99  # of the target: units are added back below this share
SWAPPED = 0.97  # and below this one, units of one group are exchanged for those of another
MOST = 2  # units of a group in an exchange


def widened(resources: Resources, counts: Sequence[float], target: int, floor: int) -> list[int]:
    """The numbers of units times the largest common factor, at least 1, at which the cost is at most the target.

    No number exceeds that of the whole network or falls below ``floor``.
    """

    def scaled(factor: float) -> list[int]:
        return [
            min(units, max(floor, round(factor * count))) for units, count in zip(resources.units, counts, strict=True)
        ]

    low, high = 1.0, max(units / max(count, 1e-9) for units, count in zip(resources.units, counts, strict=True))
    if resources.total(scaled(high)) <= target:
        return scaled(high)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if resources.total(scaled(middle)) <= target else (low, middle)
    return scaled(low)


def most_important(importance: Sequence[Tensor], counts: Sequence[int]) -> list[Tensor]:
    """So many units of each group, (units,) bool, those of the largest importance (units,)."""
    remaining = []
    for values, count in zip(importance, counts, strict=True):
        mask = torch.zeros(len(values), dtype=torch.bool)
        mask[values.argsort(descending=True, stable=True)[:count]] = True
        remaining.append(mask)
    return remaining


def meet(
    resources: Resources, importance: Sequence[Tensor], counts: Sequence[int], target: int, floor: int
) -> list[Tensor]:
    """The units that remain, (units,) bool for each group, at a cost of at most the target and close to it.

    It starts with so many units of each group, those of the largest importance. While the cost exceeds the target, the
    unit of least importance in all groups is removed. Then, below 99 % of the target, the most important of the
    removed units are added that fit. If the cost is still below 97 %, the numbers of two groups change by at most two
    units each, as few as possible, such that it is not, or is the largest possible.

    Args:
        resources: of the network.
        importance: (units,) for each group, comparable among groups.
        counts: the number of units of each group to start with.
        target: the largest cost.
        floor: the smallest number of units of a group.
    """
    current = list(counts)
    ranked = [values.sort(descending=True, stable=True).values.tolist() for values in importance]
    while resources.total(current) > target:
        removable = [group for group, count in enumerate(current) if count > floor]
        current[min(removable, key=lambda group: ranked[group][current[group] - 1])] -= 1
    while resources.total(current) < CLOSE * target:
        more = [_changed(current, {group: 1}) for group in range(len(current)) if current[group] < len(ranked[group])]
        fitting = [numbers for numbers in more if resources.total(numbers) <= target]
        if not fitting:
            break
        current = max(
            fitting,
            key=lambda numbers: max(
                ranked[group][new - 1]
                for group, (new, old) in enumerate(zip(numbers, current, strict=True))
                if new > old
            ),
        )
    if resources.total(current) < SWAPPED * target:
        current = _exchanged(resources, current, target, floor)
    return most_important(importance, current)


def _exchanged(resources: Resources, counts: Sequence[int], target: int, floor: int) -> list[int]:
    """The numbers of units after a change of at most two groups that brings the cost close to the target."""
    best, best_key = list(counts), (min(resources.total(counts), SWAPPED * target), 0, 0)
    steps = range(-MOST, MOST + 1)
    for one, other in combinations_with_replacement(range(len(counts)), 2):
        for first, second in product(steps, steps):
            numbers = _changed(counts, {one: first, other: second})
            if any(not floor <= count <= units for count, units in zip(numbers, resources.units, strict=True)):
                continue
            cost = resources.total(numbers)
            key = (min(cost, SWAPPED * target), -sum(abs(a - b) for a, b in zip(numbers, counts, strict=True)), cost)
            if cost <= target and key > best_key:
                best, best_key = numbers, key
    return best


def _changed(counts: Sequence[int], changes: Mapping[int, int]) -> list[int]:
    return [count + changes.get(group, 0) for group, count in enumerate(counts)]
