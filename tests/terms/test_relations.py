"""Relational distillation: known values, plain loops, invariances and random vertices."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.terms.relations import (
    Loss,
    angles_by_hand,
    both_losses,
    distance_by_hand,
    distances_by_hand,
    gradient,
    points,
)
from tutelage.losses import angle_relations, distance_relations
from tutelage.models.outputs import Outputs
from tutelage.terms import AngleRelations, DistanceRelations
from tutelage.terms.relations import MAX_ANGLES, cosines, relative_distances

S = torch.tensor([[0.0, 0], [1, 0], [0, 1]]).double()
T = torch.tensor([[0.0, 0], [1, 0], [3, 0]]).double()


# --- values


def test_known_relative_distances() -> None:
    near, far = 0.878680, 1.242641
    student_shape = torch.tensor([[0, near, near], [near, 0, far], [near, far, 0]]).double()
    torch.testing.assert_close(relative_distances(S), student_shape, atol=1e-6, rtol=0)
    teacher_shape = torch.tensor([[0, 0.5, 1.5], [0.5, 0, 1.0], [1.5, 1.0, 0]]).double()
    torch.testing.assert_close(relative_distances(T), teacher_shape)


def test_known_distance_loss() -> None:
    value = distance_relations(S, T)
    assert value.item() == pytest.approx(0.0653680, abs=1e-7)
    assert value.item() * 9 / 6 == pytest.approx(0.0980520, abs=1e-7)  # over pairs of different samples
    assert value.shape == ()


def test_known_angle_loss() -> None:
    value = angle_relations(S, T)
    assert value.item() == pytest.approx(3.5 / 27, abs=1e-12)
    assert value.item() * 27 / 6 == pytest.approx(0.583333, abs=1e-6)  # over distinct triplets
    assert value.shape == ()


def test_angle_is_at_the_middle_sample() -> None:
    """A right angle at the origin and two of 45 degrees; a direction with itself has a cosine of 1."""
    result = cosines(S, torch.arange(3))
    diagonal = 1 / math.sqrt(2)
    expected = [
        [[0, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[1, 0, diagonal], [0, 0, 0], [diagonal, 0, 1]],
        [[1, diagonal, 0], [diagonal, 1, 0], [0, 0, 0]],
    ]
    torch.testing.assert_close(result, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(cosines(S, torch.tensor([2, 0])), result[[2, 0]])


@pytest.mark.parametrize(
    ("student_shape", "teacher_shape"),
    [((4, 3), (4, 3)), ((5, 2), (5, 7)), ((6, 1), (6, 4)), ((4, 2, 2, 1), (4, 3))],
    ids=str,
)
def test_equal_plain_loops_for_different_widths(student_shape: tuple[int, ...], teacher_shape: tuple[int, ...]) -> None:
    student, teacher = points(*student_shape), points(*teacher_shape, seed=1)
    expected = distance_by_hand(student, teacher), angles_by_hand(student, teacher)
    assert distance_relations(student, teacher).item() == pytest.approx(expected[0], rel=1e-12)
    assert angle_relations(student, teacher).item() == pytest.approx(expected[1], rel=1e-12)


def test_large_differences_count_linearly() -> None:
    """A far point on one side makes a relative distance differ by more than 1, where Huber's loss is linear."""
    student, teacher = points(6, 3), points(6, 3, seed=1)
    student[0] *= 50
    gap = torch.tensor(distances_by_hand(student)) - torch.tensor(distances_by_hand(teacher))
    assert gap.abs().max() > 1
    assert distance_relations(student, teacher).item() == pytest.approx(distance_by_hand(student, teacher), rel=1e-12)
    flipped = torch.tensor([[0.0], [1], [-1]]).double(), torch.tensor([[0.0], [1], [2]]).double()
    assert angle_relations(*flipped).item() == pytest.approx(4 * 1.5 / 27)  # cosines of 1 and -1 are swapped


def test_mean_distance_excludes_zeros() -> None:
    """Two pairs of equal points: 8 of the 16 distances are 3."""
    inputs = torch.tensor([[0.0], [0], [3], [3]]).double()
    expected = torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]).double()
    torch.testing.assert_close(relative_distances(inputs), expected)


# --- invariances


def rotated(inputs: Tensor) -> Tensor:
    rotation: Tensor = torch.linalg.qr(points(inputs.shape[1], inputs.shape[1], seed=9)).Q
    return inputs @ rotation


@both_losses
@pytest.mark.parametrize(
    "change",
    [
        lambda e: e + 5,
        lambda e: e + torch.arange(4),
        rotated,
        lambda e: e * torch.tensor([-1, 1, 1, 1]),
        lambda e: 1e-3 * e,
        lambda e: 1e3 * e,
        lambda e: torch.cat([e, torch.zeros(len(e), 3)], 1),
    ],
    ids=["moved", "moved unevenly", "rotated", "mirrored", "shrunk", "scaled", "embedded in more dimensions"],
)
def test_invariances(change: Callable[[Tensor], Tensor], loss: Loss) -> None:
    student, teacher = points(5, 4), points(5, 4, seed=1)
    value = loss(student, teacher)
    torch.testing.assert_close(loss(change(student), teacher), value)
    torch.testing.assert_close(loss(student, change(teacher)), value)
    assert loss(change(student), student).item() == pytest.approx(0, abs=1e-16)


@both_losses
@pytest.mark.parametrize(
    "change",
    [lambda e: torch.cat([3 * e[:1], e[1:]]), F.normalize, lambda e: e * torch.tensor([5, 1, 1, 1])],
    ids=["one sample scaled", "each sample normalised", "one axis stretched"],
)
def test_loss_depends_on_other_changes(change: Callable[[Tensor], Tensor], loss: Loss) -> None:
    student = points(5, 4)
    assert loss(change(student), student) > 1e-3


@both_losses
def test_invariant_to_common_permutation_of_samples(loss: Loss) -> None:
    student, teacher, order = points(5, 4), points(5, 4, seed=1), torch.tensor([2, 0, 4, 3, 1])
    torch.testing.assert_close(loss(student[order], teacher[order]), loss(student, teacher))
    assert not torch.allclose(loss(student[order], teacher), loss(student, teacher), rtol=1e-2)


# --- random vertices


@pytest.mark.parametrize("maximum", [125, 126, 10**6])
def test_all_angles_are_compared_up_to_the_maximum(maximum: int) -> None:
    student, teacher = points(5, 3), points(5, 3, seed=1)
    before = torch.get_rng_state()
    assert torch.equal(angle_relations(student, teacher, maximum), angle_relations(student, teacher))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("maximum", "vertices"), [(1, 1), (25, 1), (49, 1), (50, 2), (124, 4)])
def test_random_vertices_are_used_above_the_maximum(maximum: int, vertices: int) -> None:
    """Every set of vertices occurs, and the mean over the sets is the loss."""
    student, teacher = points(5, 3), points(5, 3, seed=1)
    of_each = [angles_by_hand(student, teacher, at=j) for j in range(5)]
    sets = [sum(subset) / vertices for subset in combinations(of_each, vertices)]
    torch.manual_seed(0)
    losses = [angle_relations(student, teacher, maximum).item() for _ in range(400)]
    assert {round(value, 9) for value in losses} == {round(value, 9) for value in sets}
    full_value = angle_relations(student, teacher).item()
    assert sum(sets) / len(sets) == pytest.approx(full_value, rel=1e-12)
    error = torch.tensor(sets).std(correction=0).item() / math.sqrt(len(losses))
    assert sum(losses) / len(losses) == pytest.approx(full_value, abs=4 * error)


def test_both_sides_use_the_same_random_vertices() -> None:
    student = points(5, 3)
    assert [angle_relations(student, student, 50).item() for _ in range(20)] == [0] * 20


def test_gradient_of_a_subset_of_angles() -> None:
    """The gradient may reach every sample, also those that are not a vertex."""
    torch.manual_seed(0)
    result = gradient(lambda s, t: angle_relations(s, t, 25), points(5, 3), points(5, 3, seed=1))
    assert (result.norm(dim=1) > 1e-6).all()


def test_batch_of_256_is_compared_completely() -> None:
    assert MAX_ANGLES == 256**3


# --- the terms


@pytest.mark.parametrize(
    ("term", "loss"), [(DistanceRelations(), distance_relations), (AngleRelations(), angle_relations)]
)
def test_terms_read_embeddings(term: DistanceRelations | AngleRelations, loss: Loss, refused: Any) -> None:
    assert (term.roles, term.teacher_roles) == (("embedding",), ("embedding",))
    assert list(term.parameters()) == []
    student, teacher = points(5, 4), points(5, 7, seed=1)
    value = term(Outputs(None, {"embedding": student}), Outputs(points(5, 2), {"embedding": teacher}), None)
    assert value.shape == ()
    assert torch.equal(value, loss(student, teacher))
    with refused("no 'embedding'"):
        term(Outputs(student), Outputs(teacher), None)
