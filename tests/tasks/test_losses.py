"""Losses and metrics of the tasks against closed forms and scikit-learn."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from tests.tasks.cases import FEATURES
from tutelage.data import Batch, Data
from tutelage.data.modality import Vectors
from tutelage.data.targets import MultiLabel, Quantities, Strings
from tutelage.losses import cross_entropy, soft_targets
from tutelage.models.outputs import Outputs
from tutelage.tasks import Compute, evaluate, find_task
from tutelage.tasks.multi_label import BinaryCrossEntropy, average_precision
from tutelage.tasks.regression import SquaredError
from tutelage.terms import CrossEntropy, SoftTargets
from tutelage.terms.term import Term

NAN = float("nan")


class Fixed(nn.Module):
    """Returns rows of the given outputs (N, ...), selected by the first feature."""

    def __init__(self, outputs: Tensor) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, inputs: Tensor) -> Tensor:
        return self.outputs[inputs[:, 0].long()]


def numbered(labels: Tensor, targets: Any, classes: list[str]) -> Data:
    inputs = torch.zeros(len(labels), FEATURES)
    inputs[:, 0] = torch.arange(len(labels))
    pair = (inputs, labels)
    return Data.from_arrays(pair, pair, modality=Vectors(), targets=targets, classes=classes)  # type: ignore[arg-type]


def value(term: Term, outputs: Tensor, targets: Tensor) -> Tensor:
    batch = Batch(torch.zeros(len(outputs), 1), targets, torch.arange(len(outputs)), None)
    return term(Outputs(outputs), None, batch)


# --- multi-label


def test_binary_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[0.0, 2.0, -1.0], [3.0, 0.0, 0.0]], dtype=torch.float64)
    labels = torch.tensor([[1.0, 0.0, -1.0], [-1.0, -1.0, -1.0]])
    result = value(BinaryCrossEntropy(), logits, labels.double())
    assert result[0] == pytest.approx((math.log(2) + math.log1p(math.exp(2.0))) / 2)
    assert result[1] == 0


def test_gradient_of_a_missing_label_is_zero() -> None:
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[1.0, 0, -1, 0], [-1, 1, 1, 0], [-1, -1, -1, -1]], dtype=torch.float64)
    value(BinaryCrossEntropy(), logits, labels).sum().backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad == 0, labels == -1)
    labelled = (labels != -1).sum(1, keepdim=True).clamp(min=1)
    expected = (logits.detach().sigmoid() - labels).where(labels != -1, 0.0) / labelled
    torch.testing.assert_close(logits.grad, expected)


def test_average_precision_equals_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(1)
    scores = torch.randint(5, (40, 3), generator=generator).float()  # many ties
    labels = torch.randint(2, (40, 3), generator=generator).float()
    result = average_precision(scores, labels)
    for column in range(3):
        assert result[column] == pytest.approx(average_precision_score(labels[:, column], scores[:, column]))
    labels[::3, 0] = -1
    labelled = labels[:, 0] != -1
    expected = average_precision_score(labels[labelled, 0], scores[labelled, 0])
    assert average_precision(scores, labels)[0] == pytest.approx(expected)
    assert average_precision(scores, labels.where(labels != 1, 0.0)).isnan().all()


def test_average_precision_by_hand() -> None:
    result = average_precision(torch.tensor([[4.0], [3.0], [2.0], [1.0]]), torch.tensor([[1.0], [0.0], [1.0], [0.0]]))
    assert result.tolist() == pytest.approx([(1 + 2 / 3) / 2])


def test_multilabel_metrics_by_hand() -> None:
    labels = torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, -1, 0], [-1, -1, -1]])
    logits = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, 9, 1], [1, 1, 1]])
    result = evaluate(Fixed(logits), numbered(labels, MultiLabel(), ["a", "b", "c"]))
    assert result["samples"] == 4
    assert result["hamming_loss"] == pytest.approx(2 / 8)
    assert result["exact_match"] == pytest.approx(1 / 3)
    assert result["micro_f1"] == pytest.approx(2 * 2 / (3 + 3))
    assert result["macro_f1"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert result["average_precision"]["c"] is None
    assert result["mean_average_precision"] == pytest.approx((result["average_precision"]["a"] + 1) / 2)


# --- regression


def test_squared_error_by_hand() -> None:
    values = torch.tensor([[1.0, 5.0], [2.0, 2.0]], requires_grad=True)
    result = value(SquaredError(), values, torch.tensor([[3.0, NAN], [NAN, NAN]]))
    assert result.tolist() == [4.0, 0.0]
    result.sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[-4.0, 0.0], [0.0, 0.0]]


def test_regression_metrics_by_hand() -> None:
    labels = torch.tensor([[1.0, NAN], [3.0, 2.0], [NAN, 4.0]])
    values = torch.tensor([[2.0, 7.0], [3.0, 2.0], [9.0, 1.0]])
    result = evaluate(Fixed(values), numbered(labels, Quantities(), ["x", "y"]))
    assert result["rmse"] == pytest.approx(math.sqrt((1 + 9) / 4))
    assert result["mae"] == pytest.approx((1 + 3) / 4)
    assert result["rmse_of_each"] == pytest.approx({"x": math.sqrt(1 / 2), "y": math.sqrt(9 / 2)})
    assert result["r2"] == pytest.approx(((1 - 1 / 2) + (1 - 9 / 2)) / 2)


# --- strings


def test_string_cross_entropy_is_the_mean_over_labelled_positions() -> None:
    logits = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[0, 1, 2, 3], [4, -1, -1, 0], [-1, -1, -1, -1]])
    result = cross_entropy(logits, labels)
    minus = -logits.detach().log_softmax(2)
    assert result[0].item() == pytest.approx(sum(minus[0, position, position].item() for position in range(4)) / 4)
    assert result[1].item() == pytest.approx((minus[1, 0, 4] + minus[1, 3, 0]).item() / 2)
    assert result[2].item() == 0
    result.sum().backward()
    assert logits.grad is not None
    assert torch.equal((logits.grad == 0).all(2), labels == -1)
    assert torch.equal(value(CrossEntropy(), logits, labels), result)
    assert torch.autograd.gradcheck(lambda z: cross_entropy(z, labels), (logits,))


def test_string_of_length_one_is_classification() -> None:
    logits, other, labels = torch.randn(6, 5), torch.randn(6, 5), torch.randint(-1, 5, (6,))
    torch.testing.assert_close(cross_entropy(logits[:, None], labels[:, None]), cross_entropy(logits, labels))
    torch.testing.assert_close(soft_targets(logits[:, None], other[:, None], 2.0), soft_targets(logits, other, 2.0))


@pytest.mark.parametrize("labels", [(3,), (3, 5), (3, 4, 5)])
def test_labels_of_another_string_length_are_refused(labels: tuple[int, ...], refused: Any) -> None:
    with refused("(3, 4)", str(labels)):
        cross_entropy(torch.zeros(3, 4, 5), torch.zeros(labels, dtype=torch.int64))


def test_symbols_out_of_range_are_refused(refused: Any) -> None:
    with refused("label 5 does not exist", "0 to 4"):
        cross_entropy(torch.zeros(1, 2, 5), torch.tensor([[0, 5]]))


def test_soft_string_loss_is_the_mean_over_all_positions() -> None:
    student, teacher = torch.randn(2, 3, 5, dtype=torch.float64), torch.randn(2, 3, 5, dtype=torch.float64)
    result = soft_targets(student, teacher, 3.0)
    per_position = [soft_targets(student[:, position], teacher[:, position], 3.0) for position in range(3)]
    torch.testing.assert_close(result, torch.stack(per_position).mean(0))
    assert SoftTargets(3.0)(Outputs(student), Outputs(student), None).abs().max() < 1e-12


def test_string_metrics_by_hand() -> None:
    labels = torch.tensor([[0, 1], [1, -1], [2, 0], [-1, -1]])
    logits = torch.zeros(4, 2, 3)
    for sample, (first, second) in enumerate([(0, 1), (1, 2), (2, 1), (0, 0)]):
        logits[sample, 0, first] = logits[sample, 1, second] = 1.0
    data = numbered(labels, Strings(), ["x", "y", "z"])
    result = evaluate(Fixed(logits), data, teacher=Fixed(logits))
    assert result["string_accuracy"] == pytest.approx(2 / 3)
    assert result["symbol_accuracy"] == pytest.approx(4 / 5)
    assert result["accuracy_by_place"] == pytest.approx([1.0, 1 / 2])
    right = math.log(2 + math.e) - 1
    assert result["nll"] == pytest.approx((4 * right + right + 1) / 5)
    assert result["teacher_string_accuracy"] == result["string_accuracy"]
    task = find_task("strings")
    batch = Batch(torch.zeros(4, 1), labels, torch.arange(4), None)
    metric = task.training_metric(Outputs(logits), batch)
    assert metric is not None
    assert metric.tolist() == [2.0, 3.0]
    assert task.score(Fixed(logits), data.test, data, Compute()) == result["string_accuracy"]
