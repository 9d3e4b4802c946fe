"""Relational distillation: gradients, samples that coincide, and precision."""

from __future__ import annotations

import pytest
import torch

from tests.terms.relations import Loss, angles_by_hand, both_losses, distance_by_hand, gradient, points
from tutelage.losses import angle_relations, distance_relations

# --- gradients


@both_losses
def test_gradcheck(loss: Loss) -> None:
    teacher = points(4, 5, seed=1)
    assert torch.autograd.gradcheck(lambda e: loss(e, teacher), points(4, 3).requires_grad_())


@both_losses
def test_gradient_is_orthogonal_to_scaling_and_translation(loss: Loss) -> None:
    """With a detached mean distance, the gradient would not be orthogonal to scaling."""
    student = points(5, 4)
    result = gradient(loss, student, points(5, 4, seed=1))
    assert result.norm() > 1e-3
    assert (result * (student - student.mean(0))).sum().item() == pytest.approx(0, abs=1e-12)
    assert result.sum(0).abs().max() < 1e-12


@both_losses
def test_no_gradient_reaches_the_teacher(loss: Loss) -> None:
    teacher = points(5, 4, seed=1).requires_grad_()
    assert gradient(loss, points(5, 4), teacher).abs().max() > 0
    assert teacher.grad is None


@both_losses
def test_value_and_gradient_are_zero_at_equality(loss: Loss) -> None:
    student = points(5, 4)
    assert loss(student, student).item() == 0
    assert gradient(loss, student, student).abs().max() == 0


@both_losses
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [0, 1e-7])
def test_gradient_is_bounded_for_equal_samples(gap: float, dtype: torch.dtype, loss: Loss) -> None:
    """``F.normalize`` of a zero difference gives a gradient of 1e11."""
    student, teacher = points(5, 4).to(dtype), points(5, 4, seed=1).to(dtype)
    student[1] = student[3] + gap
    result = gradient(loss, student, teacher)
    assert loss(student, teacher).isfinite()
    assert result.isfinite().all()
    assert 1e-4 < result.abs().max() < 1e3


@both_losses
@pytest.mark.parametrize("zero_network", ["student", "teacher", "both"])
def test_gradient_is_bounded_for_several_zero_embeddings(zero_network: str, loss: Loss) -> None:
    student, teacher = points(5, 4), points(5, 4, seed=1)
    for side, name in ((student, "teacher"), (teacher, "student")):
        if zero_network != name:
            side[[0, 2, 3]] = 0
    result = gradient(loss, student, teacher)
    assert loss(student, teacher).isfinite()
    assert result.isfinite().all()
    assert result.abs().max() < 1e3


@both_losses
@pytest.mark.parametrize("zero_network", ["student", "teacher", "both"])
def test_value_and_gradient_are_finite_if_all_samples_coincide(zero_network: str, loss: Loss) -> None:
    student = torch.zeros(4, 3) if zero_network != "teacher" else points(4, 3).float()
    teacher = torch.ones(4, 3) if zero_network != "student" else points(4, 3, seed=1).float()
    result = gradient(loss, student, teacher)
    assert loss(student, teacher).isfinite()
    assert result.isfinite().all()
    assert result.abs().max() < (1e3 if zero_network == "teacher" else 1e-12)


def test_degenerate_triplets_count_with_a_cosine_of_zero() -> None:
    student, teacher = points(5, 3), points(5, 3, seed=1)
    student[1] = student[3]
    assert angle_relations(student, teacher).item() == pytest.approx(angles_by_hand(student, teacher), rel=1e-12)
    assert distance_relations(student, teacher).item() == pytest.approx(distance_by_hand(student, teacher), rel=1e-12)


# --- batches and precision


@both_losses
@pytest.mark.parametrize("samples", [1, 2])
def test_loss_is_zero_for_fewer_than_three_samples(samples: int, loss: Loss) -> None:
    """With two samples, the only distance is the mean, and there is no angle."""
    student, teacher = points(samples, 4), points(samples, 3, seed=1)
    assert loss(student, teacher).item() == pytest.approx(0, abs=1e-16)
    assert gradient(loss, student, teacher).abs().max() < 1e-12


@both_losses
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(half: torch.dtype, loss: Loss) -> None:
    """The square of 300 overflows in float16."""
    student, teacher = (300 * points(5, 4)).to(half), points(5, 3, seed=1).to(half)
    value = loss(student, teacher)
    assert value.dtype == torch.float32
    assert torch.equal(value, loss(student.float(), teacher.float()))
    torch.testing.assert_close(value.double(), loss(student.double(), teacher.double()), rtol=1e-4, atol=0)


@pytest.mark.parametrize("samples", [8, 40])  # torch.cdist uses matrix products from 25 samples on
def test_small_distances_far_from_origin_are_precise(samples: int) -> None:
    """Distances from a float32 Gram matrix would be noise."""
    student, teacher = (100 + 0.01 * points(samples, 4)).float(), points(samples, 4, seed=1)
    expected = distance_by_hand(student.double(), teacher)
    assert distance_relations(student, teacher.float()).item() == pytest.approx(expected, rel=1e-4)


@both_losses
def test_nan_is_not_hidden(loss: Loss) -> None:
    student = points(4, 6)
    student[1, 2] = float("nan")
    assert loss(student, points(4, 6, seed=1)).isnan()
