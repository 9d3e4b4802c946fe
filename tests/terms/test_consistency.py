"""The squared distance of probabilities: values, gradients and extreme inputs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tutelage.errors import TutelageError
from tutelage.losses import softmax_mse
from tutelage.models.outputs import Outputs
from tutelage.terms import SoftmaxMSE


def logits(*shape: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def reference_loss(student: list[float], teacher: list[float]) -> float:
    sums = [sum(math.exp(z) for z in side) for side in (student, teacher)]
    gaps = [math.exp(z) / sums[0] - math.exp(v) / sums[1] for z, v in zip(student, teacher, strict=True)]
    return sum(gap * gap for gap in gaps) / len(gaps)


def test_value_on_two_classes() -> None:
    """Probabilities (1/4, 3/4) and (1/2, 1/2)."""
    value = softmax_mse(torch.tensor([[0.0, math.log(3)]]), torch.zeros(1, 2))
    assert value.tolist() == pytest.approx([1 / 16])


def test_equals_plain_loops_per_sample() -> None:
    student, teacher = logits(5, 7), logits(5, 7, seed=1)
    expected = [reference_loss(z, v) for z, v in zip(student.tolist(), teacher.tolist(), strict=True)]
    assert softmax_mse(student, teacher).tolist() == pytest.approx(expected, rel=1e-12)


def test_loss_is_symmetric_shift_invariant_and_bounded_by_two_over_classes() -> None:
    student, teacher = logits(5, 4), logits(5, 4, seed=1)
    value = softmax_mse(student, teacher)
    torch.testing.assert_close(softmax_mse(teacher, student), value)
    torch.testing.assert_close(softmax_mse(student + 9, teacher - 5), value)
    assert softmax_mse(student, student).tolist() == [0] * 5
    certain_logits = 1e4 * torch.eye(4)
    assert softmax_mse(certain_logits[:1], certain_logits[1:2]).tolist() == [pytest.approx(2 / 4)]


def test_gradient_reaches_student_only() -> None:
    student, teacher = logits(3, 4).requires_grad_(), logits(3, 4, seed=1).requires_grad_()
    softmax_mse(student, teacher).sum().backward()
    assert student.grad is not None
    assert student.grad.abs().max() > 1e-3
    assert teacher.grad is None
    assert torch.autograd.gradcheck(lambda z: softmax_mse(z, teacher), student)


def test_extreme_logits_and_half_precision() -> None:
    student = torch.tensor([[1e30, -1e30], [float("-inf"), 0.0]], requires_grad=True)
    value = softmax_mse(student[:1], torch.zeros(1, 2))
    assert value.tolist() == [0.25]
    assert softmax_mse(logits(2, 3).half(), logits(2, 3).half()).dtype == torch.float32
    assert softmax_mse(torch.tensor([[float("nan"), 0.0]]), torch.zeros(1, 2)).isnan().all()


def test_term_averages_probabilities_of_teachers() -> None:
    term = SoftmaxMSE()
    first, second = logits(3, 4, seed=1), logits(3, 4, seed=2)
    mean = (first.softmax(1) + second.softmax(1)) / 2
    ensemble = Outputs.ensemble((Outputs(first), Outputs(second)))
    torch.testing.assert_close(term(Outputs(logits(3, 4)), ensemble, None), softmax_mse(logits(3, 4), mean.log()))
    assert (term.roles, term.teacher_roles) == (("logits",), ("logits",))
    with pytest.raises(TutelageError, match="teacher"):
        term(Outputs(first), None, None)
