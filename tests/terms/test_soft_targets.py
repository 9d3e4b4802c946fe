"""Hinton's soft targets: closed forms, plain loops in Python, and extreme logits."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.losses import kl_divergence, soft_targets
from tutelage.models.outputs import Outputs
from tutelage.terms import CrossEntropy, SoftTargets, labels_and_soft_targets

Z, V = torch.tensor([[1.0, 2, 3]], dtype=torch.float64), torch.tensor([[3.0, 2, 1]], dtype=torch.float64)
INF = float("inf")


def softmax_at(logits: list[float], temperature: float) -> list[float]:
    powers = [math.exp(x / temperature) for x in logits]
    return [power / sum(powers) for power in powers]


def reference_losses(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    values = []
    for z, v in zip(student.tolist(), teacher.tolist(), strict=True):
        p, q = softmax_at(z, temperature), softmax_at(v, temperature)
        values.append(temperature**2 * sum(b * math.log(b / a) for a, b in zip(p, q, strict=True)))
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("temperature", "value", "tolerance"), [(1, 1.150421, 1e-6), (4, 1.319630, 1e-6), (1000, 8 / (2 * 3), 2e-6)]
)
def test_known_value(temperature: float, value: float, tolerance: float) -> None:
    assert soft_targets(Z, V, temperature).tolist() == pytest.approx([value], abs=tolerance)


def test_kl_divergence_has_no_temperature_factor() -> None:
    value = kl_divergence((V / 4).log_softmax(-1), (Z / 4).log_softmax(-1))
    assert value.tolist() == pytest.approx([0.0824769], abs=1e-7)


def test_value_is_sum_over_classes() -> None:
    mean_over_classes = 0.439877  # F.kl_div(reduction="mean") for this pair: C times too small
    repeated = soft_targets(Z.repeat(2, 1), V.repeat(2, 1), 4)
    assert repeated.shape == (2,)
    assert repeated.mean().item() == pytest.approx(3 * mean_over_classes, abs=3e-6)


def test_known_gradient() -> None:
    student = Z.clone().requires_grad_()
    soft_targets(student, V, 4).sum().backward()
    torch.testing.assert_close(student.grad, torch.tensor([[-0.659815, 0, 0.659815]]).double(), atol=1e-6, rtol=0)


def test_known_total_loss(batch_of: Callable[[Tensor], Batch]) -> None:
    alpha = 0.9
    parts = [(1 - alpha) * CrossEntropy(), alpha * SoftTargets(4)]
    batch = batch_of(torch.tensor([0]))
    total = sum(part.at(0.5) * part.term(Outputs(Z), Outputs(V), batch).mean() for part in parts)
    assert float(total) == pytest.approx(1.428427, abs=1e-6)


@pytest.mark.parametrize("alpha", [0.1, 0.9, 1])
def test_weights_of_labels_and_soft_targets_sum_to_one(alpha: float, batch_of: Callable[[Tensor], Batch]) -> None:
    terms, batch = labels_and_soft_targets(alpha), batch_of(torch.tensor([0]))
    assert list(terms) == ["ce", "kd"]
    assert (type(terms["ce"].term), type(terms["kd"].term)) == (CrossEntropy, SoftTargets)
    assert [term.view for term in terms.values()] == [None, None]
    total = sum(part.at(0.5) * part.term(Outputs(Z), Outputs(V), batch).mean() for part in terms.values())
    label = math.log(sum(math.exp(z) for z in (1, 2, 3))) - 1
    assert float(total) == pytest.approx((1 - alpha) * label + alpha * 1.319630, abs=1e-6)


def test_known_total_of_labels_and_soft_targets(batch_of: Callable[[Tensor], Batch]) -> None:
    parts, batch = labels_and_soft_targets(0.9, 4).values(), batch_of(torch.tensor([0]))
    total = sum(part.at(0) * part.term(Outputs(Z), Outputs(V), batch).mean() for part in parts)
    assert float(total) == pytest.approx(1.428427, abs=1e-6)


def test_alpha_zero_is_the_label_loss_without_teacher() -> None:
    terms = labels_and_soft_targets(0, 7)
    assert list(terms) == ["ce"]
    assert terms["ce"].at(0.5) == 1
    assert (type(terms["ce"].term), terms["ce"].term.teacher_roles) == (CrossEntropy, ())


def test_temperature_of_labels_and_soft_targets() -> None:
    kd = [labels_and_soft_targets(0.5, *t)["kd"].term(Outputs(Z), Outputs(V), None) for t in ((), (2,), (1,))]
    assert [value.item() for value in kd] == [soft_targets(Z, V, t).item() for t in (4, 2, 1)]


@pytest.mark.parametrize("temperature", [0.5, 1, 3.7])
def test_equals_plain_loops(temperature: float) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 5, 7, dtype=torch.float64).unbind()
    torch.testing.assert_close(
        soft_targets(student, teacher, temperature), reference_losses(student, teacher, temperature)
    )


def test_the_default_temperature_is_four() -> None:
    assert torch.equal(soft_targets(Z, V), soft_targets(Z, V, 4))
    assert SoftTargets().temperature == 4


@pytest.mark.parametrize("temperature", [1, 4])
def test_invariant_to_constant_shift_of_logits(temperature: float) -> None:
    value = soft_targets(Z, V, temperature)
    torch.testing.assert_close(soft_targets(Z + 5, V, temperature), value)
    torch.testing.assert_close(soft_targets(Z, V - 7, temperature), value)


@pytest.mark.parametrize("temperature", [1, 4])
def test_gradcheck(temperature: float) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 4, dtype=torch.float64).unbind()
    assert torch.autograd.gradcheck(lambda z: soft_targets(z, teacher, temperature), student.requires_grad_())


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_logits_of_ten_thousand(temperature: float) -> None:
    """q and p are certain of different classes: KL = 2e4 / T, gradient T (p - q)."""
    student = torch.tensor([[1e4, -1e4, 0]], requires_grad=True)
    value = soft_targets(student, torch.tensor([[-1e4, 1e4, 0]]), temperature)
    value.sum().backward()
    assert value.tolist() == [2e4 * temperature]
    assert student.grad is not None
    assert student.grad.tolist() == [[temperature, -temperature, 0]]


@pytest.mark.parametrize(
    ("third_probability", "expected"),
    [
        (0.0, 0.25 * math.log(0.75) + 0.75 * math.log(2.25)),  # p is uniform over three
        (-INF, 0.25 * math.log(0.5) + 0.75 * math.log(1.5)),  # the student excludes the class too
    ],
)
def test_class_with_teacher_probability_zero(third_probability: float, expected: float) -> None:
    student = torch.tensor([[0.0, 0, third_probability]], requires_grad=True)
    value = soft_targets(student, torch.tensor([[0, math.log(3), -INF]]), 1)
    value.sum().backward()
    assert value.tolist() == pytest.approx([expected])
    p = student.detach().softmax(1)
    torch.testing.assert_close(student.grad, p - torch.tensor([[0.25, 0.75, 0]]))


def test_loss_is_infinite_for_class_excluded_by_student_only() -> None:
    assert soft_targets(torch.tensor([[0.0, -INF]]), torch.zeros(1, 2)).tolist() == [INF]


def test_softened_probabilities_of_teachers_are_averaged() -> None:
    torch.manual_seed(0)
    z, *teachers = (3 * torch.randn(3, 5, 4, dtype=torch.float64)).unbind()
    value = SoftTargets(3)(Outputs(z), Outputs.ensemble(tuple(map(Outputs, teachers))), None)
    mean = [
        [sum(pair) / 2 for pair in zip(*rows, strict=True)]
        for rows in zip(*([softmax_at(row, 3) for row in teacher.tolist()] for teacher in teachers), strict=True)
    ]
    logits = 3 * torch.tensor(mean, dtype=torch.float64).log()
    torch.testing.assert_close(value, reference_losses(z, logits, 3))
    of_mean_logits = SoftTargets(3)(Outputs(z), Outputs((teachers[0] + teachers[1]) / 2), None)
    assert not torch.allclose(value, of_mean_logits, rtol=1e-2)


@pytest.mark.parametrize("temperature", [0, -1, float("nan")])
def test_a_temperature_must_be_positive(temperature: float) -> None:
    with pytest.raises(TutelageError, match=f"above 0, got {temperature}"):
        SoftTargets(temperature)
