"""Groups of classes: closed forms, and all outcomes of an enumeration in exact arithmetic."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from tutelage.methods.ssal.grouping import class_groups, confusion_matrix, random_groups


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def counts(classes: int, seed: int, high: int = 50) -> Tensor:
    return torch.randint(high, (classes, classes), generator=seeded(seed))


def partition(groups: Tensor) -> set[frozenset[int]]:
    return {frozenset((groups == number).nonzero().flatten().tolist()) for number in groups.unique().tolist()}


def outcomes(confusion: Sequence[Sequence[int]], count: int, separate: bool) -> set[tuple[int, ...]]:
    """All divisions that the card's steps can end in, over all ways to break ties, in exact arithmetic."""
    classes = range(len(confusion))
    largest = max(confusion[i][j] for i in classes for j in classes if i != j)

    def distance(i: int, j: int) -> Fraction:
        if i == j:
            return Fraction(0)
        pair = (confusion[i][j], confusion[j][i])
        return Fraction(sum(pair) if separate else sum(largest - value for value in pair), 2)

    def to_group(i: int, members: frozenset[int]) -> Fraction:
        return sum((distance(i, j) for j in members), Fraction(0)) / len(members)

    def extreme(values: dict[int, Fraction], sign: int) -> list[int]:
        best = max(sign * value for value in values.values())
        return [key for key, value in values.items() if sign * value == best]

    def go(groups: tuple[frozenset[int], ...]) -> Iterator[tuple[frozenset[int], ...]]:
        left = [i for i in classes if not any(i in members for members in groups)]
        if not left:
            yield groups
            return
        nearest = {i: min(to_group(i, members) for members in groups if members) for i in left}
        opened = [members for members in groups if members]
        if len(opened) < count:
            for i in extreme(nearest, 1):
                yield from go((*opened, frozenset([i]), *groups[len(opened) + 1 :]))
            return
        for i in extreme(nearest, -1):
            free = {g: to_group(i, groups[g]) for g in range(count) if len(groups[g]) < 1.1 * len(classes) / count}
            for g in extreme(free, -1):
                yield from go((*groups[:g], groups[g] | {i}, *groups[g + 1 :]))

    first = extreme({i: sum((distance(i, j) for j in classes), Fraction(0)) for i in classes}, -1)
    empty = (frozenset[int](),) * (count - 1)
    results = {groups for i in first for groups in go((frozenset([i]), *empty))}
    return {tuple(next(g for g in range(count) if i in groups[g]) for i in classes) for groups in results}


PAIRS = torch.tensor([[90, 10, 0, 0], [10, 80, 0, 0], [0, 0, 70, 8], [0, 0, 8, 60]])


@pytest.mark.parametrize("seed", range(5))
def test_confused_pairs_share_a_group(seed: int) -> None:
    assert partition(class_groups(PAIRS, 2, seeded(seed))) == {frozenset({0, 1}), frozenset({2, 3})}


@pytest.mark.parametrize("seed", range(5))
def test_split_separates_confused_pairs(seed: int) -> None:
    groups = class_groups(PAIRS, 2, seeded(seed), separate=True).tolist()
    assert groups[0] != groups[1]
    assert groups[2] != groups[3]


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize(("classes", "count"), [(2, 1), (5, 1), (5, 2), (7, 3), (9, 4), (6, 6), (12, 5)])
def test_equals_the_steps_in_exact_arithmetic(classes: int, count: int, separate: bool) -> None:
    for seed in range(4):
        confusion = counts(classes, seed, high=10**6)
        groups = class_groups(confusion, count, seeded(seed), separate=separate)
        assert {tuple(groups.tolist())} == outcomes(confusion.tolist(), count, separate)


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize(("classes", "count"), [(5, 2), (5, 3), (6, 2)])
def test_ties_are_broken_at_random_and_every_outcome_is_possible(classes: int, count: int, separate: bool) -> None:
    confusion = counts(classes, 3, high=2)
    possible = outcomes(confusion.tolist(), count, separate)
    generator = seeded()
    reached = {tuple(class_groups(confusion, count, generator, separate=separate).tolist()) for _ in range(1000)}
    assert len(possible) > 1
    assert reached == possible


def test_without_confusion_groups_are_random_and_even() -> None:
    """All distances are equal then, and may be 0: every group must be opened all the same."""
    for separate in (False, True):
        results = [class_groups(torch.eye(20), 5, seeded(seed), separate=separate) for seed in range(4)]
        for groups in results:
            assert sorted(torch.bincount(groups, minlength=5).tolist())[0] >= 1
            assert int(torch.bincount(groups).max()) <= math.ceil(1.1 * 20 / 5)
        assert not torch.equal(results[0], results[1])


@pytest.mark.parametrize(("classes", "count"), [(100, 20), (100, 33), (100, 50), (10, 3), (7, 2), (40, 8)])
def test_sizes_have_a_limit_and_no_group_is_empty(classes: int, count: int) -> None:
    for seed in range(3):
        sizes = torch.bincount(class_groups(counts(classes, seed), count, seeded(seed)), minlength=count)
        assert int(sizes.min()) >= 1
        assert int(sizes.max()) <= math.ceil(1.1 * classes / count)


def test_true_and_predicted_classes_may_be_exchanged() -> None:
    confusion = counts(12, 1)
    for separate in (False, True):
        groups = [class_groups(c, 4, seeded(2), separate=separate) for c in (confusion, confusion.T)]
        assert torch.equal(*groups)


def test_correct_predictions_do_not_matter() -> None:
    confusion = counts(12, 1)
    other = confusion.clone().fill_diagonal_(10**6)
    assert torch.equal(class_groups(confusion, 4, seeded()), class_groups(other, 4, seeded()))
    assert confusion.diagonal().any()  # the matrix is not changed


def test_same_generator_gives_same_groups() -> None:
    confusion = counts(30, 4, high=2)
    assert torch.equal(class_groups(confusion, 7, seeded(3)), class_groups(confusion, 7, seeded(3)))


@pytest.mark.parametrize(("shape", "count"), [((3, 4), 2), ((4, 4), 0), ((4, 4), 5)])
def test_impossible_groups_are_refused(shape: tuple[int, int], count: int, refused: Any) -> None:
    with refused("1 to K groups", str(shape), count):
        class_groups(torch.zeros(shape), count, seeded())


def test_random_groups_are_even() -> None:
    groups = [random_groups(100, 33, seeded(seed)) for seed in range(3)]
    for division in groups:
        assert sorted(torch.bincount(division).tolist()) == [3] * 32 + [4]
    assert not torch.equal(groups[0], groups[1])


def test_confusion_matrix_counts_pairs() -> None:
    labels, predictions = torch.tensor([0, 0, 2, -1, 1, 0]), torch.tensor([0, 2, 1, 1, 1, 2])
    assert confusion_matrix(labels, predictions, 3).tolist() == [[1, 0, 2], [0, 1, 0], [0, 1, 0]]
