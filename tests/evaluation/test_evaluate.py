"""Evaluation of one network: strict JSON, metrics worked out by hand, errors."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tutelage.data.data import Data, Split
from tutelage.errors import TutelageError
from tutelage.evaluation import cost_of, memorisation
from tutelage.models.surgery.abstain import apply
from tutelage.models.tapped import Tapped
from tutelage.tasks import evaluate


class Reads(nn.Module):
    """Predicts the class stored in the first pixel of an image with logit ``scale``."""

    def __init__(self, classes: int = 3, scale: float = 1000.0) -> None:
        super().__init__()
        self.classes, self.scale = classes, scale
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, inputs: Tensor) -> Tensor:
        predictions = (inputs[:, 0, 0, 0] * 255).round().long()
        return self.scale * nn.functional.one_hot(predictions, self.classes).float() + self.weight


def part(predictions: list[int], labels: list[int], clean: list[int] | None = None) -> Split:
    images = torch.tensor(predictions, dtype=torch.uint8)[:, None, None, None].expand(-1, 2, 2, 1).contiguous()
    split = Split.of(images, torch.tensor(labels))
    return split if clean is None else replace(split, clean_labels=torch.tensor(clean))


def data() -> Data:
    return Data(
        name="toy",
        classes=("ant", "bee", "cow"),
        # Samples 0, 2 and 3 are mislabelled; the network predicts the noisy label of 0 and 2 and the clean one of 3.
        train=part([0, 1, 2, 1, 2], labels=[0, 1, 2, 0, -1], clean=[1, 1, 0, 1, 2]),
        validation=part([0, 1], [0, 1]),
        test=part([0, 0, 1, 1], labels=[0, 0, 0, 1]),
    )


def test_evaluate_by_hand() -> None:
    result = evaluate(Reads(), data())
    assert result == {
        "samples": 4,
        "accuracy": 0.75,
        "top5_accuracy": None,
        "per_class_accuracy": {"ant": pytest.approx(2 / 3), "bee": 1.0, "cow": None},
        "worst_class_accuracy": pytest.approx(2 / 3),
        "per_class_precision": {"ant": 1.0, "bee": 0.5, "cow": None},
        "per_class_f1": {"ant": pytest.approx(4 / 5), "bee": pytest.approx(2 / 3), "cow": None},
        "macro_f1": pytest.approx(11 / 15),
        "macro_auroc": pytest.approx(5 / 6),  # of the pairs of an ant and a bee, two are ordered and one is tied
        "confusion": [[2, 1, 0], [0, 1, 0], [0, 0, 0]],
        "nll": 250.0,
        "brier": 0.5,
        "ece": 0.25,
        "calibration_gap": 0.25,
        "aurc": pytest.approx(0.25),  # four samples of equal confidence: an error of 1/4 at every coverage
        "reliability": {
            "count": [0] * 14 + [4],
            "accuracy": [None] * 14 + [0.75],
            "confidence": [None] * 14 + [1.0],
        },
        "risk_coverage": {"coverage": [0.25, 0.5, 0.75, 1.0], "risk": pytest.approx([0.25] * 4)},
    }


def test_evaluate_with_a_teacher_by_hand() -> None:
    """A teacher with equal logits predicts class 0; a certain student is 1000 nats off at two of three classes."""
    result = evaluate(Reads(), data(), teacher=Reads(scale=0.0))
    assert result["agreement"] == 0.5
    assert result["teacher_accuracy"] == 0.75
    assert result["kl_to_teacher"] == pytest.approx(1000 * 2 / 3 - math.log(3), rel=1e-5)


@pytest.mark.parametrize(("name", "samples", "accuracy"), [("train", 5, 0.75), ("validation", 2, 1), ("test", 4, 0.75)])
def test_requested_split_is_evaluated(name: str, samples: int, accuracy: float) -> None:
    result = evaluate(Reads(), data(), split=name)
    assert (result["samples"], result["accuracy"]) == (samples, accuracy)


def test_soft_labels_count_as_their_argmax() -> None:
    full_data = data()
    soft = replace(full_data, test=replace(full_data.test, labels=0.6 * torch.eye(3)[full_data.test.labels] + 0.4 / 3))
    assert evaluate(Reads(), soft) == evaluate(Reads(), full_data)


def test_json_is_strict_without_any_label() -> None:
    unlabelled_data = replace(data(), test=part([0, 1], [-1, -1]))
    result = evaluate(Reads(), unlabelled_data, teacher=Reads())
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["accuracy"] is None
    assert result["worst_class_accuracy"] is None
    assert result["macro_f1"] is None
    assert result["ece"] is None
    assert result["aurc"] is None
    assert result["reliability"]["count"] == [0] * 15
    assert result["risk_coverage"] == {"coverage": [], "risk": []}
    assert result["agreement"] == 1


@pytest.mark.parametrize("size", [100, 101, 102, 1000])
def test_long_risk_coverage_curve_is_thinned_to_101_points(size: int) -> None:
    """All samples have equal confidence, and half of the predictions are wrong."""
    full_data = replace(data(), test=part([0, 1] * (size // 2) + [0] * (size % 2), [0] * size))
    curve = evaluate(Reads(), full_data)["risk_coverage"]
    assert len(curve["coverage"]) == len(curve["risk"]) == min(size, 101)
    assert curve["coverage"][0] == pytest.approx(1 / size)
    assert curve["coverage"][-1] == 1
    assert curve["coverage"] == sorted(set(curve["coverage"]))
    assert curve["risk"] == pytest.approx([size // 2 / size] * len(curve["risk"]))


def test_memorisation_by_hand() -> None:
    assert memorisation(Reads(), data()) == {
        "wrong_labels": 3,
        "memorised": pytest.approx(2 / 3),
        "train_accuracy_clean": pytest.approx(3 / 5),
        "train_accuracy_given": pytest.approx(3 / 4),
    }


def test_memorisation_of_clean_labels_is_null() -> None:
    result = memorisation(Reads(), replace(data(), train=part([0, 1], [0, 0])))
    assert result == {
        "wrong_labels": 0,
        "memorised": None,
        "train_accuracy_clean": 0.5,
        "train_accuracy_given": 0.5,
    }


def test_cost_of() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    result = cost_of(model, torch.full((1, *data().image_shape), 0.5))
    assert list(result) == ["parameters", "flops", "latency_ms", "latency_ms_quartiles"]
    assert (result["parameters"], result["flops"]) == (15, 24)
    low, high = result["latency_ms_quartiles"]
    assert 0 < low <= result["latency_ms"] <= high
    assert json.loads(json.dumps(result, allow_nan=False)) == result


@pytest.mark.parametrize("classes", [4, 10])
def test_other_number_of_classes_is_refused(classes: int) -> None:
    message = f"returns {classes} logits, but toy has 3 classes: give its last layer 3 outputs"
    with pytest.raises(TutelageError, match=f"the network {message}") as error:
        evaluate(Reads(classes), data())
    assert "\n" not in str(error.value)
    with pytest.raises(TutelageError, match=f"the teacher {message}"):
        evaluate(Reads(), data(), teacher=Reads(classes))
    with pytest.raises(TutelageError, match=f"the network {message}"):
        memorisation(Reads(classes), data())


def test_unknown_split_is_refused() -> None:
    with pytest.raises(TutelageError, match="unknown split 'tset'; did you mean 'test'"):
        evaluate(Reads(), data(), split="tset")
    with pytest.raises(TutelageError, match="unknown split 'validation'"):
        evaluate(Reads(), replace(data(), validation=None), split="validation")


def test_abstaining_network_is_also_ranked_by_its_abstain_output() -> None:
    """The network is right in 3 of 4 samples and abstains from predictions of 0 rather than of 1."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    fc = network[1]
    assert isinstance(fc, nn.Linear)
    apply(network, torch.zeros(1, 1, 2, 2))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        fc.weight[1, 0], fc.bias[0] = 510.0, 1.0  # pixel 1 / 255 gives class 1 the logit 2, against 1 of class 0
        network.get_parameter("1.abstain.weight")[0, 0] = -255.0
    result = evaluate(Tapped(network), data())
    # Predicted 0, 0, 1, 1 and labels 0, 0, 0, 1: the two predictions of 1 rank first, one of them wrong.
    assert result["accuracy"] == 0.75
    assert result["risk_coverage_by_abstention"]["coverage"] == [0.25, 0.5, 0.75, 1.0]
    assert result["risk_coverage_by_abstention"]["risk"] == pytest.approx([1 / 2, 1 / 2, 1 / 3, 1 / 4])
    assert result["aurc_by_abstention"] == pytest.approx((1 / 2 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    probability_of_0, probability_of_1 = 1 / (math.e + 3), math.exp(-1) / (math.e + math.e**2 + 1 + math.exp(-1))
    assert result["abstain_probability"] == pytest.approx((probability_of_0 + probability_of_1) / 2, rel=1e-5)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    plain = evaluate(Tapped(nn.Sequential(nn.Flatten(), nn.Linear(4, 3))), data())
    assert plain.keys() == result.keys() - {"abstain_probability", "aurc_by_abstention", "risk_coverage_by_abstention"}


@pytest.mark.parametrize("task", ["strings", "multi_label", "regression"])
def test_task_that_does_not_fit_the_data_is_refused(task: str) -> None:
    """A weights file may name any task."""
    with pytest.raises(
        TutelageError, match=f"toy.*{task.split('_', maxsplit=1)[0]}|{task.split('_', maxsplit=1)[0]}.*toy"
    ):
        evaluate(Reads(), data(), task=task)
