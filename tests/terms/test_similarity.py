"""Similarity-preserving distillation: a known value, invariances, and what it must not be invariant to."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.losses import similarity_preserving
from tutelage.models.outputs import Outputs
from tutelage.terms import SimilarityPreserving
from tutelage.terms.similarity import similarities

EYE, EQUAL_ROWS = torch.eye(2).double(), torch.tensor([[1.0, 0], [1, 0]]).double()


def features(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rows_by_hand(inputs: Tensor) -> list[list[float]]:
    flat = inputs.flatten(1).tolist()
    rows = []
    for flat_row in flat:
        row = [sum(a * b for a, b in zip(flat_row, other, strict=True)) for other in flat]
        length = math.sqrt(sum(x * x for x in row))
        rows.append([x / length for x in row])
    return rows


def reference_loss(student: Tensor, teacher: Tensor) -> float:
    b, student_shape, teacher_shape = len(student), rows_by_hand(student), rows_by_hand(teacher)
    return sum((student_shape[i][j] - teacher_shape[i][j]) ** 2 for i in range(b) for j in range(b)) / b**2


def rotated(inputs: Tensor) -> Tensor:
    """Multiply each sample's flat features by one orthogonal matrix."""
    rotation: Tensor = torch.linalg.qr(features(inputs[0].numel(), inputs[0].numel(), seed=9)).Q
    return (inputs.flatten(1) @ rotation).view_as(inputs)


def test_known_value() -> None:
    """A norm of the whole matrix would give 0.146447, a sum without 1/b^2 1.171573."""
    value = similarity_preserving(EQUAL_ROWS, EYE)
    assert value.item() == pytest.approx(1 - 1 / math.sqrt(2), abs=1e-12)
    assert value.item() * 4 == pytest.approx(1.171573, abs=1e-6)
    assert value.shape == ()


@pytest.mark.parametrize(
    ("student_shape", "teacher_shape"),
    [((4, 3, 2, 2), (4, 3, 2, 2)), ((5, 3, 2, 3), (5, 7, 4, 1)), ((2, 4), (2, 3, 2, 2)), ((3, 1), (3, 6))],
    ids=str,
)
def test_equals_plain_loops_for_different_shapes(
    student_shape: tuple[int, ...], teacher_shape: tuple[int, ...]
) -> None:
    student, teacher = features(*student_shape), features(*teacher_shape, seed=1)
    assert similarity_preserving(student, teacher).item() == pytest.approx(reference_loss(student, teacher), rel=1e-12)


def test_rows_have_unit_length_and_matrix_is_not_symmetric() -> None:
    result = similarities(features(4, 3, 2, 2))
    assert result.shape == (4, 4)
    torch.testing.assert_close(result.norm(dim=1), torch.ones(4).double())
    assert not torch.allclose(result, result.T, rtol=1e-2)


@pytest.mark.parametrize(
    "change",
    [lambda q: 1e-3 * q, lambda q: 1e3 * q, lambda q: -q, rotated, lambda q: q.repeat(1, 3, 1, 1)],
    ids=["shrunk", "scaled", "sign flipped", "rotated", "channels repeated"],
)
def test_invariances(change: Callable[[Tensor], Tensor]) -> None:
    student, teacher = features(4, 3, 2, 2), features(4, 3, 2, 2, seed=1)
    value = similarity_preserving(student, teacher)
    torch.testing.assert_close(similarity_preserving(change(student), teacher), value)
    torch.testing.assert_close(similarity_preserving(student, change(teacher)), value)
    assert similarity_preserving(change(student), student).item() == pytest.approx(0, abs=1e-24)


def test_invariant_to_common_permutation_of_samples() -> None:
    student, teacher, order = features(4, 3, 2, 2), features(4, 3, 2, 2, seed=1), torch.tensor([2, 0, 3, 1])
    value = similarity_preserving(student, teacher)
    torch.testing.assert_close(similarity_preserving(student[order], teacher[order]), value)
    assert not torch.allclose(similarity_preserving(student[order], teacher), value, rtol=1e-2)


@pytest.mark.parametrize(
    "change",
    [lambda q: torch.cat([3 * q[:1], q[1:]]), lambda q: q + 1, lambda q: F.normalize(q.flatten(1))],
    ids=["one sample scaled", "moved", "each sample normalised"],
)
def test_loss_depends_on_other_changes(change: Callable[[Tensor], Tensor]) -> None:
    """Similarities are inner products, not cosines, which would not depend on the scale of one sample."""
    student = features(4, 3, 2, 2)
    assert similarity_preserving(change(student), student) > 1e-3


def test_loss_of_single_sample_is_zero() -> None:
    student = features(1, 3, 2, 2).requires_grad_()
    assert similarities(student).tolist() == [[1]]
    value = similarity_preserving(student, features(1, 5, seed=1))
    value.backward()
    assert value.item() == 0
    assert student.grad is not None
    assert student.grad.abs().max() == 0


@pytest.mark.parametrize("zero_network", ["student", "teacher", "both"])
def test_maps_of_zeros_are_finite_in_value_and_gradient(zero_network: str) -> None:
    """Every row of the other side has length 1: b / b^2."""
    student = (torch.zeros(4, 2, 2, 2) if zero_network != "teacher" else features(4, 2, 2, 2).float()).requires_grad_()
    teacher = torch.zeros(4, 2, 2, 2) if zero_network != "student" else features(4, 2, 2, 2).float()
    value = similarity_preserving(student, teacher)
    value.backward()
    assert value.item() == pytest.approx(0 if zero_network == "both" else 1 / 4)
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad.abs().max() < 10


def test_gradient_is_bounded_for_zero_and_repeated_samples() -> None:
    student = features(5, 6)
    student[1], student[3] = 0, student[2]
    student.requires_grad_()
    value = similarity_preserving(student, features(5, 6, seed=1))
    value.backward()
    assert value.isfinite()
    assert student.grad is not None
    assert student.grad.abs().max() < 1e3
    assert student.grad[2:].abs().max() > 1e-4


def test_gradient_flows_through_row_norm() -> None:
    """It is orthogonal to scaling the student, unlike with a detached norm."""
    student = features(4, 3, 2, 2).requires_grad_()
    similarity_preserving(student, features(4, 3, 2, 2, seed=1)).backward()
    assert student.grad is not None
    assert student.grad.norm() > 1e-3
    assert (student.grad * student).sum().item() == pytest.approx(0, abs=1e-12)


def test_gradcheck() -> None:
    teacher = features(4, 5, seed=1)
    student = features(4, 3, 2, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda q: similarity_preserving(q, teacher), student)


def test_no_gradient_reaches_the_teacher() -> None:
    student, teacher = features(4, 6).requires_grad_(), features(4, 6, seed=1).requires_grad_()
    similarity_preserving(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_inner_products_beyond_range_of_float16(half: torch.dtype) -> None:
    """300^2 overflows in float16."""
    student, teacher = (300 * features(4, 3, 2, 2)).to(half), features(4, 5, seed=1).to(half)
    value = similarity_preserving(student, teacher)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(reference_loss(student.double(), teacher.double()), rel=1e-4)


@pytest.mark.parametrize("batch", [1, 2, 32, 64, 128])
def test_term_is_loss_times_batch_size_over_64(batch: int) -> None:
    student, teacher = features(batch, 3, 2, 2), features(batch, 5, 2, 1, seed=1)
    term = SimilarityPreserving("s", "t")
    value = term(Outputs(None, {"s": student}), Outputs(None, {"t": teacher}), None)
    assert value.shape == ()
    torch.testing.assert_close(value, similarity_preserving(student, teacher) * batch / 64)


def test_weight_of_row_is_independent_of_batch_size() -> None:
    """For a student of zeros each row is at distance 1: b rows of 1 / b^2, times b / 64."""
    term = SimilarityPreserving("s", "t")
    for batch in (3, 17, 64):
        pair = Outputs(None, {"s": torch.zeros(batch, 2)}), Outputs(None, {"t": features(batch, 4).float()})
        assert term(*pair, None).item() == pytest.approx(1 / 64)


def test_roles_of_term(refused: Any) -> None:
    term = SimilarityPreserving("s", "t")
    assert (term.roles, term.teacher_roles) == (("s",), ("t",))
    assert list(term.parameters()) == []
    with refused("no 't'"):
        term(Outputs(None, {"s": EYE}), Outputs(None, {"s": EYE}), None)


def test_nan_is_not_hidden() -> None:
    student = features(4, 6)
    student[1, 2] = float("nan")
    assert similarity_preserving(student, features(4, 6, seed=1)).isnan()
