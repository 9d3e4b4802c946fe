"""Knowledge adjustment: plain loops in Python and invariants."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.losses import label_smooth_replacement, probability_shift, soft_targets
from tutelage.models.outputs import Outputs
from tutelage.terms import AdjustedSoftTargets, SoftTargets
from tutelage.terms.knowledge_adjustment import Adjustment


def random_predictions(samples: int = 200, classes: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    probs = torch.randn(samples, classes, generator=generator, dtype=torch.float64).softmax(1)
    return probs, torch.randint(classes, (samples,), generator=generator)


def reference_adjustment(probs: Tensor, labels: Tensor, smoothing: float | None = None) -> Tensor:
    """Swap, or replace if a smoothing is given, for each sample."""
    result = probs.clone()
    for row, y in zip(result, labels.tolist(), strict=True):
        top = row.tolist().index(max(row.tolist()))
        if y < 0 or row[y] == row[top]:
            continue
        if smoothing is None:
            row[y], row[top] = float(row[top]), float(row[y])
        else:
            row[:] = smoothing / (len(row) - 1)
            row[y] = 1 - smoothing
    return result


ADJUSTMENTS = pytest.mark.parametrize(
    ("adjust", "smoothing"), [(probability_shift, None), (label_smooth_replacement, 0.1)], ids=["shift", "replacement"]
)


@ADJUSTMENTS
def test_equals_plain_loops(adjust: Adjustment, smoothing: float | None) -> None:
    probs, labels = random_predictions()
    labels[::7] = -1
    torch.testing.assert_close(
        adjust(probs, labels), reference_adjustment(probs, labels, smoothing), rtol=0, atol=1e-15
    )


@ADJUSTMENTS
def test_correct_predictions_are_not_adjusted(adjust: Adjustment, smoothing: float | None) -> None:
    probs, _ = random_predictions()
    assert torch.equal(adjust(probs, probs.argmax(1)), probs)


@ADJUSTMENTS
def test_label_has_largest_probability_after_adjustment(adjust: Adjustment, smoothing: float | None) -> None:
    probs, labels = random_predictions()
    first_result = adjust(probs, labels)
    assert torch.equal(first_result.argmax(1), labels)
    assert torch.equal(adjust(first_result, labels), first_result)
    torch.testing.assert_close(first_result.sum(1), torch.ones(len(first_result), dtype=torch.float64))


def test_shift_permutes_probabilities() -> None:
    probs, labels = random_predictions()
    assert torch.equal(probability_shift(probs, labels).sort(1).values, probs.sort(1).values)


@ADJUSTMENTS
@pytest.mark.parametrize("label", [0, 2])
def test_ties_do_not_swap(adjust: Adjustment, smoothing: float | None, label: int) -> None:
    probs = torch.tensor([[0.4, 0.2, 0.4]])
    assert torch.equal(adjust(probs, torch.tensor([label])), probs)


@ADJUSTMENTS
def test_missing_labels_adjust_nothing_and_soft_labels_count_as_argmax(
    adjust: Adjustment, smoothing: float | None
) -> None:
    probs, labels = random_predictions()
    assert torch.equal(adjust(probs, torch.full_like(labels, -1)), probs)
    soft = 0.6 * torch.eye(5)[labels] + 0.08
    assert torch.equal(adjust(probs, soft), adjust(probs, labels))


def test_replacement_by_hand() -> None:
    replacement = label_smooth_replacement(torch.tensor([[0.7, 0.2, 0.1]]), torch.tensor([2]), 0.3)
    torch.testing.assert_close(replacement, torch.tensor([[0.15, 0.15, 0.7]]))


# --- term


def outputs(seed: int, samples: int = 6, classes: int = 5) -> Outputs:
    generator = torch.Generator().manual_seed(seed)
    return Outputs(3 * torch.randn(samples, classes, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_term_is_divergence_from_adjusted_teacher(temperature: float, batch_of: Callable[[Tensor], Batch]) -> None:
    student, teacher, labels = outputs(0), outputs(1), torch.tensor([0, 1, 2, 3, 4, -1])
    value = AdjustedSoftTargets(probability_shift, temperature)(student, teacher, batch_of(labels))
    q = reference_adjustment((teacher["logits"] / temperature).softmax(1), labels)
    p = (student["logits"] / temperature).softmax(1)
    torch.testing.assert_close(value, temperature**2 * (q * (q / p).log()).sum(1))


def test_term_equals_soft_targets_for_correct_teacher(batch_of: Callable[[Tensor], Batch]) -> None:
    student, teacher = outputs(0), outputs(1)
    value = AdjustedSoftTargets()(student, teacher, batch_of(teacher["logits"].argmax(1)))
    torch.testing.assert_close(value, SoftTargets(4.0)(student, teacher, None))


def test_term_ignores_abstention_output(batch_of: Callable[[Tensor], Batch]) -> None:
    """The gradient is T^2 (p - q) / T on m logits and 0 on the abstention output."""
    student, teacher = outputs(0), outputs(1)
    labels = teacher["logits"].argmax(1)
    logits = student["logits"].clone().requires_grad_()
    abstain = torch.full((6, 1), 50.0, dtype=torch.float64, requires_grad=True)
    value = AdjustedSoftTargets()(Outputs(logits, {"abstain": abstain}), teacher, batch_of(labels))
    torch.testing.assert_close(value, soft_targets(logits, teacher["logits"], 4.0))
    value.sum().backward()
    assert abstain.grad is None
    gap = (logits.detach() / 4).softmax(1) - (teacher["logits"] / 4).softmax(1)
    torch.testing.assert_close(logits.grad, 4 * gap)


def test_teachers_are_averaged_before_adjustment(batch_of: Callable[[Tensor], Batch]) -> None:
    """Two teachers are confident of different classes, and the label is a third: the swap applies to their mean."""
    first_logits, second_logits = torch.tensor([[8.0, 0.0, 2.0]]), torch.tensor([[0.0, 7.0, 2.0]])
    together = Outputs.ensemble((Outputs(first_logits), Outputs(second_logits)))
    labels = torch.tensor([2])
    value = AdjustedSoftTargets(temperature=1.0)(Outputs(torch.zeros(1, 3)), together, batch_of(labels))
    q = reference_adjustment((first_logits.softmax(1) + second_logits.softmax(1)) / 2, labels)
    assert value.item() == pytest.approx(float((q * q.log()).sum()) + math.log(3), abs=1e-5)


def test_no_gradient_reaches_teacher_and_extreme_logits_are_finite(batch_of: Callable[[Tensor], Batch]) -> None:
    teacher = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    student = torch.tensor([[-1e4, 1e4, 0.0]], requires_grad=True)
    value = AdjustedSoftTargets(temperature=1.0)(Outputs(student), Outputs(teacher), batch_of(torch.tensor([1])))
    value.sum().backward()
    assert teacher.grad is None
    assert value.tolist() == [
        0.0
    ]  # the teacher's confidence moves to the label, which the student predicts confidently
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("temperature", [0, -1, math.inf, math.nan])
def test_invalid_temperatures_are_refused(temperature: float) -> None:
    with pytest.raises(TutelageError, match="temperature"):
        AdjustedSoftTargets(temperature=temperature)


def test_teacher_and_labels_are_required(batch_of: Callable[[Tensor], Batch]) -> None:
    with pytest.raises(TutelageError, match="teacher"):
        AdjustedSoftTargets()(outputs(0), None, batch_of(torch.zeros(6).long()))
    with pytest.raises(TutelageError, match="labels"):
        AdjustedSoftTargets()(outputs(0), outputs(1), None)


def test_public_code_does_not_compute_a_divergence(batch_of: Callable[[Tensor], Batch]) -> None:
    """KD_Lib calls KLDivLoss(softmax(v / T), softmax(z / T)): arguments swapped and no logarithms; below 0 at z = v."""
    teacher = outputs(1)
    labels = teacher["logits"].argmax(1)
    q = (teacher["logits"] / 4).softmax(1)
    public_value = torch.nn.functional.kl_div(q, q, reduction="none").sum(1)
    value = AdjustedSoftTargets()(teacher, teacher, batch_of(labels))
    assert (public_value < -0.1).all()
    torch.testing.assert_close(value, torch.zeros_like(value))
