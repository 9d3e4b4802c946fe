"""Every metric against plain Python loops in float64, and against values calculated by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.evaluation.metric_loops import (
    CERTAIN,
    CORRECT,
    draw_predictions,
    first_largest,
    labelled,
    mean,
    of_confidence,
    slow_accuracy,
    slow_ece,
    softmax,
)
from tutelage.evaluation import metrics

Scored = Callable[[Tensor, Tensor], Tensor]


def slow_per_class(logits: Tensor, labels: Tensor) -> list[float]:
    pairs = labelled(logits, labels)
    return [mean([float(first_largest(r) == k) for r, k in pairs if k == c]) for c in range(logits.shape[1])]


def slow_worst(logits: Tensor, labels: Tensor) -> float:
    return min(value for value in slow_per_class(logits, labels) if not math.isnan(value))


def slow_f1(logits: Tensor, labels: Tensor) -> list[float]:
    pairs = [(first_largest(row), label) for row, label in labelled(logits, labels)]
    scores = []
    for c in range(logits.shape[1]):
        hits = sum(predicted == label == c for predicted, label in pairs)
        false = sum((predicted == c) + (label == c) for predicted, label in pairs if predicted != label)
        scores.append(2 * hits / (2 * hits + false) if hits + false else math.nan)
    return scores


def slow_macro_f1(logits: Tensor, labels: Tensor) -> float:
    return mean([value for value in slow_f1(logits, labels) if not math.isnan(value)])


def slow_nll(logits: Tensor, labels: Tensor) -> float:
    return mean([-math.log(softmax(row)[label]) for row, label in labelled(logits, labels)])


def slow_brier(logits: Tensor, labels: Tensor) -> float:
    return mean(
        [sum((p - (c == label)) ** 2 for c, p in enumerate(softmax(row))) for row, label in labelled(logits, labels)]
    )


def slow_gap(logits: Tensor, labels: Tensor) -> float:
    return mean([max(softmax(r)) - (first_largest(r) == label) for r, label in labelled(logits, labels)])


def slow_agreement(student: Tensor, teacher: Tensor) -> float:
    pairs = zip(student.double().tolist(), teacher.double().tolist(), strict=True)
    return mean([float(first_largest(s) == first_largest(t)) for s, t in pairs])


def slow_kl(student: Tensor, teacher: Tensor) -> float:
    pairs = zip(student.double().tolist(), teacher.double().tolist(), strict=True)
    return mean([sum(q * math.log(q / p) for p, q in zip(softmax(s), softmax(t), strict=True)) for s, t in pairs])


WITH_LABELS: list[tuple[Scored, Callable[[Tensor, Tensor], float]]] = [
    (metrics.accuracy, slow_accuracy),
    (metrics.worst_class_accuracy, slow_worst),
    (metrics.macro_f1, slow_macro_f1),
    (metrics.nll, slow_nll),
    (metrics.brier, slow_brier),
    (metrics.ece, slow_ece),
    (metrics.calibration_gap, slow_gap),
]
OF_PAIRS: list[tuple[Scored, Callable[[Tensor, Tensor], float]]] = [
    (metrics.agreement, slow_agreement),
    (metrics.kl_to_teacher, slow_kl),
]


SIZES = [(0, 1, 3), (1, 60, 2), (2, 101, 7)]  # seed, samples, classes
PRECISION = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-5}


@pytest.mark.parametrize("size", SIZES[1:])
@pytest.mark.parametrize("dtype", PRECISION)
@pytest.mark.parametrize(("fast", "slow"), WITH_LABELS)
def test_metric_equals_plain_loops(
    fast: Scored,
    slow: Callable[[Tensor, Tensor], float],
    dtype: torch.dtype,
    size: tuple[int, int, int],
) -> None:
    logits, _, labels = draw_predictions(*size, dtype)
    value = fast(logits, labels)
    assert value.shape == ()
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert value.item() == pytest.approx(slow(logits, labels), abs=PRECISION[dtype])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", PRECISION)
@pytest.mark.parametrize(("fast", "slow"), OF_PAIRS)
def test_pair_metric_equals_plain_loops(
    fast: Scored,
    slow: Callable[[Tensor, Tensor], float],
    dtype: torch.dtype,
    size: tuple[int, int, int],
) -> None:
    student, teacher, _ = draw_predictions(*size, dtype)
    value = fast(student, teacher)
    assert value.shape == ()
    assert value.item() == pytest.approx(slow(student, teacher), abs=PRECISION[dtype])


def test_per_class_accuracy_equals_plain_loops() -> None:
    logits, _, labels = draw_predictions(4, 80, 6, torch.float64)
    labels[labels == 3] = -1
    value = metrics.per_class_accuracy(logits, labels)
    assert value[3].isnan()
    assert value.tolist() == pytest.approx(slow_per_class(logits, labels), nan_ok=True)


@pytest.mark.parametrize("classes", [2, 6])
def test_f1_equals_scikit_learn(classes: int) -> None:
    """scikit-learn averages over classes that occur as labels or predictions."""
    from sklearn.metrics import f1_score

    logits, _, labels = draw_predictions(7, 50, classes, torch.float32)
    logits = torch.cat([logits, torch.full((50, 1), -100.0)], 1)  # the last class is never predicted, nor a label
    is_labelled = labels >= 0
    expected = f1_score(labels[is_labelled], logits[is_labelled].argmax(1), average=None)
    value = metrics.per_class_f1(logits, labels)
    assert value.shape == (classes + 1,)
    assert value[-1].isnan()
    assert value[:-1].tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    macro = f1_score(labels[is_labelled], logits[is_labelled].argmax(1), average="macro")
    assert metrics.macro_f1(logits, labels).item() == pytest.approx(macro, abs=1e-6)


def test_f1_by_hand() -> None:
    """Only class 0 is predicted: precision 2/5 and recall 1. Class 1 has labels, class 2 has none."""
    logits, labels = torch.eye(3)[[0] * 5], torch.tensor([0, 0, 1, 1, 1])
    assert metrics.per_class_f1(logits, labels).tolist() == pytest.approx([4 / 7, 0.0, math.nan], nan_ok=True)
    assert metrics.macro_f1(logits, labels).item() == pytest.approx(2 / 7)


@pytest.mark.parametrize("classes", [2, 6])
def test_auroc_precision_and_confusion_equal_scikit_learn(classes: int) -> None:
    from sklearn.metrics import confusion_matrix, precision_score, roc_auc_score

    logits, _, labels = draw_predictions(9, 70, classes, torch.float64)
    logits = logits.round()  # many ties
    is_labelled = labels >= 0
    true, probabilities = labels[is_labelled].numpy(), logits[is_labelled].softmax(1).numpy()
    areas = [roc_auc_score(true == c, probabilities[:, c]) for c in range(classes)]
    assert metrics.macro_auroc(logits, labels).item() == pytest.approx(sum(areas) / classes, abs=1e-12)
    predicted = logits[is_labelled].argmax(1).numpy()
    assert metrics.confusion(logits, labels).tolist() == confusion_matrix(true, predicted).tolist()
    precision = precision_score(true, predicted, average=None, zero_division=float("nan"))
    assert metrics.per_class_precision(logits, labels).tolist() == pytest.approx(precision.tolist(), nan_ok=True)


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_top_accuracy_equals_plain_loops(count: int) -> None:
    logits, _, labels = draw_predictions(3, 60, 7, torch.float64)
    pairs = labelled(logits.round(), labels)
    hits = [label in sorted(range(7), key=lambda c: (-row[c], c))[:count] for row, label in pairs]
    assert metrics.top_accuracy(logits.round(), labels, count).item() == pytest.approx(mean([*map(float, hits)]))
    if count == 1:
        assert metrics.top_accuracy(logits, labels, 1) == metrics.accuracy(logits, labels)


def test_auroc_of_a_class_without_samples_is_left_out() -> None:
    logits, labels = torch.tensor([[2.0, 1, 0], [1, 2, 0], [1, 2, 0]]), torch.tensor([0, 1, 1])
    assert metrics.macro_auroc(logits, labels).item() == 1.0
    assert metrics.macro_auroc(logits, torch.zeros(3, dtype=torch.int64)).isnan()


@pytest.mark.parametrize("metric", [metric for metric, _ in WITH_LABELS])
def test_metric_is_invariant_to_a_constant_added_to_logits(metric: Scored) -> None:
    logits, _, labels = draw_predictions(5, 50, 4, torch.float64)
    shift = torch.linspace(-30, 30, 50, dtype=torch.float64)[:, None]
    torch.testing.assert_close(metric(logits + shift, labels), metric(logits, labels), atol=1e-12, rtol=0)


@pytest.mark.parametrize("metric", [metric for metric, _ in OF_PAIRS])
def test_pair_metric_is_invariant_to_a_constant_added_to_either_logits(metric: Scored) -> None:
    student, teacher, _ = draw_predictions(5, 50, 4, torch.float64)
    torch.testing.assert_close(metric(student + 9, teacher - 7), metric(student, teacher), atol=1e-12, rtol=0)


@pytest.mark.parametrize("metric", [metric for metric, _ in WITH_LABELS])
def test_unlabelled_samples_are_ignored(metric: Scored) -> None:
    logits, _, labels = draw_predictions(6, 40, 4, torch.float64)
    is_labelled = labels >= 0
    assert 0 < is_labelled.sum() < len(labels)
    torch.testing.assert_close(metric(logits, labels), metric(logits[is_labelled], labels[is_labelled]))


@pytest.mark.parametrize("metric", [metric for metric, _ in WITH_LABELS])
@pytest.mark.parametrize("samples", [0, 4])
def test_metric_without_any_label_is_nan(metric: Scored, samples: int) -> None:
    assert metric(torch.zeros(samples, 3), torch.full((samples,), -1)).isnan()


@pytest.mark.parametrize(
    ("metric", "right", "wrong"),
    [
        (metrics.accuracy, 1.0, 0.0),
        (metrics.worst_class_accuracy, 1.0, 0.0),
        (metrics.macro_f1, 1.0, 0.0),
        (metrics.nll, 0.0, 1000.0),
        (metrics.brier, 0.0, 2.0),
        (metrics.ece, 0.0, 1.0),
        (metrics.calibration_gap, 0.0, 1.0),
    ],
)
def test_metrics_of_certain_predictions(metric: Scored, right: float, wrong: float) -> None:
    assert metric(CERTAIN, CORRECT).item() == right
    assert metric(CERTAIN, (CORRECT + 1) % 3).item() == wrong


@pytest.mark.parametrize("classes", [2, 5, 10])
def test_metrics_of_uniform_logits(classes: int) -> None:
    logits, labels = torch.full((classes, classes), 3.0, dtype=torch.float64), torch.arange(classes)
    assert metrics.nll(logits, labels).item() == pytest.approx(math.log(classes), abs=1e-12)
    assert metrics.brier(logits, labels).item() == pytest.approx(1 - 1 / classes, abs=1e-12)
    # Equal logits go to class 0, and one sample in C is of class 0: accuracy equals confidence.
    assert metrics.accuracy(logits, labels).item() == pytest.approx(1 / classes)
    assert metrics.worst_class_accuracy(logits, labels).item() == 0
    assert metrics.ece(logits, labels).item() == pytest.approx(0, abs=1e-12)
    assert metrics.calibration_gap(logits, labels).item() == pytest.approx(0, abs=1e-12)


def test_worst_class_is_not_the_mean_and_ignores_absent_classes() -> None:
    logits = torch.eye(4)[[0, 0, 1, 0, 0]]
    labels = torch.tensor([0, 0, 1, 1, 1])
    assert metrics.per_class_accuracy(logits, labels)[:2].tolist() == pytest.approx([1.0, 1 / 3])
    assert metrics.worst_class_accuracy(logits, labels).item() == pytest.approx(1 / 3)
    assert metrics.accuracy(logits, labels).item() == pytest.approx(3 / 5)


def test_kl_is_from_teacher_to_student() -> None:
    student, teacher = of_confidence(0.5), of_confidence(0.8)
    expected = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)
    assert metrics.kl_to_teacher(student, teacher).item() == pytest.approx(expected)
    assert metrics.kl_to_teacher(teacher, teacher).item() == 0
    assert metrics.agreement(teacher, teacher).item() == 1


def test_kl_stays_finite_where_a_probability_is_zero_in_float32() -> None:
    """All probability mass of the teacher lies where the log-probability of the student is -1000."""
    assert metrics.kl_to_teacher(torch.tensor([[1000.0, 0]]), torch.tensor([[0, 1000.0]])).item() == 1000


def test_memorisation_by_hand() -> None:
    noisy_labels = torch.tensor([1, 2, 0, 0, 1, -1, 2])
    clean = torch.tensor([0, 0, 0, 1, 2, 1, -1])
    predicted = torch.tensor([1, 0, 1, 0, 0, 1, 2])
    # Samples 0, 1, 3 and 4 are wrong: 0 and 3 are predicted as the noisy label, 1 as the clean one, 4 as neither.
    assert metrics.wrongly_labelled(noisy_labels, clean).tolist() == [True, True, False, True, True, False, False]
    assert metrics.memorised(torch.eye(3)[predicted], noisy_labels, clean).item() == 0.5


def test_memorisation_at_its_bounds_and_without_corrupted_labels() -> None:
    labels = torch.tensor([0, 1, 2])
    assert metrics.memorised(torch.eye(3), labels, labels).isnan()
    assert metrics.memorised(torch.eye(3), (labels + 1) % 3, labels).item() == 0
    assert metrics.memorised(torch.eye(3), labels, (labels + 1) % 3).item() == 1


@pytest.mark.parametrize("metric", [*(metric for metric, _ in WITH_LABELS), metrics.per_class_accuracy])
@pytest.mark.parametrize(("logits", "labels"), [((3, 4), (5,)), ((3, 4), (3, 1)), ((3,), (3,))])
def test_mismatched_shapes_are_refused(metric: Scored, logits: tuple[int, ...], labels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"logits \(N, C\)") as error:
        metric(torch.zeros(logits), torch.zeros(labels, dtype=torch.int64))
    assert f"got {logits} and {labels}" in str(error.value)


@pytest.mark.parametrize("metric", [metric for metric, _ in OF_PAIRS])
@pytest.mark.parametrize(("student", "teacher"), [((3, 4), (3, 5)), ((3, 4), (1, 4)), ((3,), (3,))])
def test_mismatched_pairs_are_refused(metric: Scored, student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="student and teacher logits") as error:
        metric(torch.zeros(student), torch.zeros(teacher))
    assert f"got {student} and {teacher}" in str(error.value)


def test_memorisation_refuses_mismatched_shapes() -> None:
    three, two = torch.zeros(3, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"got \(3,\) and \(2,\)"):
        metrics.memorised(torch.zeros(3, 4), three, two)
    with pytest.raises(ValueError, match=r"got \(2, 4\) and \(3,\)"):
        metrics.memorised(torch.zeros(2, 4), three, three)


@pytest.mark.parametrize("label", [-2, 4])
def test_label_out_of_range_is_refused(label: int) -> None:
    with pytest.raises(ValueError, match=r"labels must lie in -1 \.\. 3"):
        metrics.accuracy(torch.zeros(2, 4), torch.tensor([0, label]))
