"""DKD, RLD, DIST, logit standardization, MLKD and Tf-KD: closed forms, plain loops in float64, and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tutelage import losses, terms
from tutelage.data.batch import Batch
from tutelage.models.outputs import Outputs
from tutelage.terms.correlation import pearson_distance
from tutelage.terms.standardization import standardized

LABELS = torch.tensor([0, 2, 1, 3])
T = 3.0


def logits(seed: int, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


STUDENT, TEACHER = logits(0), logits(1)
Loss = Callable[[Tensor, Tensor], Tensor]
PAIRS: dict[str, Loss] = {
    "decoupled_soft_targets": lambda z, v: losses.decoupled_soft_targets(z, v, LABELS, 1.0, 8.0, T),
    "refined_soft_targets": lambda z, v: losses.refined_soft_targets(z, v, v.argmax(1), 1.0, 8.0, T),
    "inter_class_relation": lambda z, v: losses.inter_class_relation(z, v, T),
    "intra_class_relation": lambda z, v: losses.intra_class_relation(z, v, T),
    "standardized_soft_targets": lambda z, v: losses.standardized_soft_targets(z, v, T),
    "multi_level": lambda z, v: terms.MultiLevelCorrelations((1.0, T))(Outputs(z), Outputs(v), None),
}


def softmax(row: list[float], temperature: float) -> list[float]:
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def pearson(a: list[float], b: list[float]) -> float:
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    covariance = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    return covariance / math.sqrt(sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b))


@pytest.mark.parametrize("name", PAIRS)
def test_loss_is_zero_where_student_equals_teacher_and_positive_elsewhere(name: str) -> None:
    assert PAIRS[name](TEACHER, TEACHER).abs().max() < 1e-12
    assert (PAIRS[name](STUDENT, TEACHER) > 0).all()


@pytest.mark.parametrize("name", PAIRS)
def test_gradcheck_and_no_gradient_of_teacher(name: str) -> None:
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: PAIRS[name](z, TEACHER), student)
    PAIRS[name](student, teacher).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().max() > 1e-3


# --- DKD


def test_decoupled_soft_targets_by_loops() -> None:
    expected = []
    for z, v, label in zip(STUDENT.tolist(), TEACHER.tolist(), LABELS.tolist(), strict=True):
        p, q = softmax(z, T), softmax(v, T)
        target = q[label] * math.log(q[label] / p[label])
        target += (1 - q[label]) * math.log((1 - q[label]) / (1 - p[label]))
        others = 0.0
        for k in range(5):
            if k != label:
                a, b = q[k] / (1 - q[label]), p[k] / (1 - p[label])
                others += a * math.log(a / b)
        expected.append(T**2 * (0.7 * target + 3 * others))
    value = losses.decoupled_soft_targets(STUDENT, TEACHER, LABELS, 0.7, 3.0, T)
    torch.testing.assert_close(value, torch.tensor(expected, dtype=torch.float64))


def test_hinton_is_target_part_plus_the_rest_weighted_by_uncertainty() -> None:
    """KL = TCKD + (1 - p_y^T) NCKD, the decomposition of the paper."""
    target = losses.decoupled_soft_targets(STUDENT, TEACHER, LABELS, 1.0, 0.0, T)
    others = losses.decoupled_soft_targets(STUDENT, TEACHER, LABELS, 0.0, 1.0, T)
    uncertainty = 1 - (TEACHER / T).softmax(1).gather(1, LABELS[:, None])[:, 0]
    torch.testing.assert_close(target + uncertainty * others, losses.soft_targets(STUDENT, TEACHER, T))


def test_other_classes_do_not_depend_on_logit_of_target() -> None:
    moved = STUDENT.scatter_add(1, LABELS[:, None], torch.full((4, 1), 5.0, dtype=torch.float64))
    before, after = (losses.decoupled_soft_targets(z, TEACHER, LABELS, 0.0, 1.0, T) for z in (STUDENT, moved))
    torch.testing.assert_close(before, after)


def test_decoupled_loss_of_certain_networks_is_finite() -> None:
    student = torch.tensor([[200.0, 0.0, -200.0]], requires_grad=True)
    value = losses.decoupled_soft_targets(student, torch.tensor([[300.0, -50.0, 50.0]]), torch.tensor([0]), 1, 8, 1.0)
    value.sum().backward()
    assert value.isfinite().all()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_samples_without_label_contribute_nothing() -> None:
    labels = torch.tensor([0, -1, 1, -1])
    value = losses.decoupled_soft_targets(STUDENT, TEACHER, labels)
    assert (value == 0).tolist() == [False, True, False, True]
    assert (losses.refined_soft_targets(STUDENT, TEACHER, labels) == 0).tolist() == [False, True, False, True]
    assert (losses.virtual_soft_targets(STUDENT, labels) == 0).tolist() == [False, True, False, True]


def test_decoupled_term_reads_labels_of_batch_and_averages_teachers() -> None:
    members = (Outputs(TEACHER), Outputs(logits(7)))
    mean = torch.stack([(member["logits"] / T).softmax(1) for member in members]).mean(0)
    batch = Batch(torch.zeros(4, 1, 2, 2), LABELS, torch.arange(4), None)
    value = terms.DecoupledSoftTargets(1.0, 2.0, T)(Outputs(STUDENT), Outputs.ensemble(members), batch)
    expected = losses.decoupled_soft_targets(STUDENT, T * mean.log(), LABELS, 1.0, 2.0, T)
    torch.testing.assert_close(value, expected)


# --- RLD

RIGHT = TEACHER.argmax(1)


def test_refined_soft_targets_by_loops() -> None:
    expected = []
    for z, v, label in zip(STUDENT.tolist(), TEACHER.tolist(), LABELS.tolist(), strict=True):
        p, q = softmax(z, T), softmax(v, T)
        top = max(q)
        confidence = top * math.log(top / p[label]) + (1 - top) * math.log((1 - top) / (1 - p[label]))
        below = [k for k in range(5) if q[k] < q[label]]
        rest_p, rest_q = sum(p[k] for k in below), sum(q[k] for k in below)
        correlation = sum(q[k] / rest_q * math.log(q[k] / rest_q * rest_p / p[k]) for k in below)
        expected.append(T**2 * (0.7 * confidence + 3 * correlation))
    assert (TEACHER.argmax(1) != LABELS).any()
    value = losses.refined_soft_targets(STUDENT, TEACHER, LABELS, 0.7, 3.0, T)
    torch.testing.assert_close(value, torch.tensor(expected, dtype=torch.float64))


def test_refined_is_decoupled_where_the_teacher_is_right() -> None:
    value = losses.refined_soft_targets(STUDENT, TEACHER, RIGHT, 0.7, 3.0, T)
    torch.testing.assert_close(value, losses.decoupled_soft_targets(STUDENT, TEACHER, RIGHT, 0.7, 3.0, T))
    assert losses.refined_soft_targets(TEACHER, TEACHER, RIGHT).abs().max() < 1e-12


def test_refined_loss_does_not_read_classes_that_a_wrong_teacher_prefers() -> None:
    """Label 2 is the teacher's third class."""
    teacher = torch.tensor([[4.0, 3.0, 1.0, 0.0, -1.0]], dtype=torch.float64)
    student = STUDENT[:1].clone().requires_grad_()
    losses.refined_soft_targets(student, teacher, torch.tensor([2]), 0.0, 1.0, T).sum().backward()
    assert student.grad is not None
    assert student.grad[0, :3].abs().max() < 1e-15
    assert student.grad[0, 3:].abs().min() > 1e-3


def test_refined_loss_where_the_label_is_the_last_class_of_the_teacher_is_the_confidence_alone() -> None:
    lowest = TEACHER.argmin(1)
    assert (losses.refined_soft_targets(STUDENT, TEACHER, lowest, 0.0, 1.0, T) == 0).all()
    student = STUDENT.clone().requires_grad_()
    losses.refined_soft_targets(student, TEACHER, lowest, 1.0, 1.0, 1.0).sum().backward()
    gap = STUDENT.softmax(1).gather(1, lowest[:, None]) - TEACHER.softmax(1).amax(1, keepdim=True)
    assert student.grad is not None
    torch.testing.assert_close(student.grad.gather(1, lowest[:, None]), gap)  # p_y^S - max p^T


def test_refined_term_reads_labels_of_batch_and_averages_teachers() -> None:
    members = (Outputs(TEACHER), Outputs(logits(7)))
    mean = torch.stack([(member["logits"] / T).softmax(1) for member in members]).mean(0)
    batch = Batch(torch.zeros(4, 1, 2, 2), LABELS, torch.arange(4), None)
    value = terms.RefinedSoftTargets(1.0, 2.0, T)(Outputs(STUDENT), Outputs.ensemble(members), batch)
    torch.testing.assert_close(value, losses.refined_soft_targets(STUDENT, T * mean.log(), LABELS, 1.0, 2.0, T))


# --- DIST


def test_relations_by_loops() -> None:
    p, q = ([softmax(row, T) for row in values.tolist()] for values in (STUDENT, TEACHER))
    inter = [T**2 * (1 - pearson(a, b)) for a, b in zip(p, q, strict=True)]
    columns = [([row[k] for row in p], [row[k] for row in q]) for k in range(5)]
    intra = T**2 * sum(1 - pearson(a, b) for a, b in columns) / 5
    torch.testing.assert_close(
        losses.inter_class_relation(STUDENT, TEACHER, T), torch.tensor(inter, dtype=torch.float64)
    )
    assert losses.intra_class_relation(STUDENT, TEACHER, T).item() == pytest.approx(intra, rel=1e-12)


def test_pearson_distance_ignores_scale_and_shift_and_is_two_for_opposites() -> None:
    torch.testing.assert_close(pearson_distance(3 * STUDENT + 2, STUDENT), torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(pearson_distance(-STUDENT, STUDENT), torch.full((4,), 2.0, dtype=torch.float64))


def test_relation_to_uniform_prediction_is_one_without_gradient() -> None:
    student = torch.zeros(4, 5, dtype=torch.float64, requires_grad=True)
    value = losses.inter_class_relation(student, TEACHER, 1.0)
    assert value.tolist() == [1.0] * 4
    value.sum().backward()
    assert student.grad is not None
    assert student.grad.abs().max() == 0


# --- logit standardization


def test_standardized_logits_have_mean_zero_and_deviation_one() -> None:
    scores = standardized(STUDENT)
    torch.testing.assert_close(scores.mean(1), torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(scores.std(1), torch.ones(4, dtype=torch.float64))
    assert standardized(torch.full((1, 5), 3.0)).tolist() == [[0.0] * 5]


def test_standardized_soft_targets_ignore_scale_and_shift_of_each_sample() -> None:
    factors = torch.tensor([[0.1], [1.0], [5.0], [40.0]], dtype=torch.float64)
    value = losses.standardized_soft_targets(STUDENT, TEACHER)
    torch.testing.assert_close(losses.standardized_soft_targets(factors * STUDENT - factors, TEACHER), value)
    torch.testing.assert_close(losses.standardized_soft_targets(STUDENT, factors * TEACHER + 3), value)
    expected = losses.soft_targets(standardized(STUDENT), standardized(TEACHER), 2.0)
    assert torch.equal(value, expected)


def test_gradient_of_equal_logits_is_finite() -> None:
    student = torch.zeros(2, 4, requires_grad=True)
    losses.standardized_soft_targets(student, torch.tensor([[1.0, 2, 3, 4]] * 2)).sum().backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


# --- MLKD


def test_correlations_by_loops() -> None:
    p, q = STUDENT.softmax(1), TEACHER.softmax(1)
    samples = classes = 0.0
    for i in range(4):
        for j in range(4):
            samples += float((p[i] * p[j]).sum() - (q[i] * q[j]).sum()) ** 2
    for k in range(5):
        for m in range(5):
            classes += float((p[:, k] * p[:, m]).sum() - (q[:, k] * q[:, m]).sum()) ** 2
    assert losses.sample_correlations(p, q).item() == pytest.approx(samples / 4, rel=1e-12)
    assert losses.class_correlations(p, q).item() == pytest.approx(classes / 5, rel=1e-12)
    value = terms.MultiLevelCorrelations((1.0,))(Outputs(STUDENT), Outputs(TEACHER), None)
    assert value.item() == pytest.approx(samples / 4 + classes / 5, rel=1e-12)


def test_correlations_of_certain_predictions() -> None:
    """Equal one-hot predictions against different ones: each off-diagonal entry differs by 1."""
    same, different = torch.tensor([[1.0, 0], [1, 0]]), torch.eye(2)
    assert losses.sample_correlations(same, different).item() == 1.0  # 2 entries of 1, over B = 2
    assert losses.class_correlations(same, different).item() == 1.0  # (2 - 1)^2 + (0 - 1)^2, over C = 2


# --- Tf-KD


def test_virtual_soft_targets_by_loops() -> None:
    expected = []
    for z, label in zip(STUDENT.tolist(), LABELS.tolist(), strict=True):
        teacher = softmax([math.log(0.9 if k == label else 0.1 / 4) for k in range(5)], T)
        expected.append(sum(q * math.log(q / p) for q, p in zip(teacher, softmax(z, 1.0), strict=True)))
    value = losses.virtual_soft_targets(STUDENT, LABELS, 0.9, T)
    torch.testing.assert_close(value, torch.tensor(expected, dtype=torch.float64))
    student = STUDENT.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: losses.virtual_soft_targets(z, LABELS, 0.9, T), student)


def test_virtual_teacher_at_temperature_one_is_label_smoothing() -> None:
    """Its gradient is p - u with u = 0.9 for the label and 0.025 for each other class."""
    student = STUDENT.clone().requires_grad_()
    losses.virtual_soft_targets(student, LABELS, 0.9, 1.0).sum().backward()
    target = torch.full((4, 5), 0.025, dtype=torch.float64).scatter(1, LABELS[:, None], 0.9)
    torch.testing.assert_close(student.grad, STUDENT.softmax(1) - target)


@pytest.mark.parametrize(
    ("make", "pieces"),
    [
        (lambda: terms.DecoupledSoftTargets(temperature=0), ("temperature", "got 0")),
        (lambda: terms.RefinedSoftTargets(temperature=-2), ("temperature", "got -2")),
        (lambda: terms.InterClassRelation(float("inf")), ("temperature", "got inf")),
        (lambda: terms.StandardizedSoftTargets(-1), ("temperature", "got -1")),
        (lambda: terms.MultiLevelCorrelations(()), ("temperatures", "got []")),
        (lambda: terms.VirtualTeacher(correct=1.0), ("(0, 1)", "got 1.0")),
    ],
)
def test_invalid_parameters_are_refused(make: Callable[[], Any], pieces: tuple[str, ...], refused: Any) -> None:
    with refused(*pieces):
        make()
