"""One of several classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tutelage.config import ExtraEvaluation
from tutelage.data.batch import UNLABELLED, Batch, hard_labels
from tutelage.data.data import Data, Split
from tutelage.data.targets import class_counts
from tutelage.errors import TutelageError
from tutelage.evaluation import operations
from tutelage.evaluation.extra import evaluate_extra
from tutelage.evaluation.json_numbers import json_number, json_numbers
from tutelage.evaluation.memorisation import memorisation
from tutelage.evaluation.metrics import (
    accuracy,
    agreement,
    brier,
    calibration_gap,
    ece,
    kl_to_teacher,
    macro_f1,
    nll,
    per_class_accuracy,
    per_class_f1,
    reliability,
    worst_class_accuracy,
)
from tutelage.evaluation.predict import class_logits, predict
from tutelage.evaluation.selective import risk_coverage, subsampled
from tutelage.models.ensemble import Ensemble
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.tasks.task import Compute, Curve, Metric, Task, check_single_label
from tutelage.terms import CrossEntropy, SoftTargets
from tutelage.terms.term import Term

AT_CHANCE = 1.5  # times the accuracy of guessing: below it a teacher is warned of


class Classification(Task):
    """One of several classes: the largest of the logits (B, C) is the prediction.

    Soft labels count as their largest class.
    """

    loss_name: ClassVar[str] = "ce"
    outputs_are_logits: ClassVar[bool] = True
    metrics: ClassVar[Mapping[str, Metric | Curve]] = MappingProxyType(
        {
            "accuracy": Metric("test accuracy", "higher", percent=True),
            "per_class_accuracy": Curve("accuracy of each class"),
            "worst_class_accuracy": Metric("accuracy of the worst class", "higher", percent=True),
            "per_class_f1": Curve("F1 of each class"),
            "macro_f1": Metric("mean F1 of the classes", "higher", percent=True, in_studies=False),
            "nll": Metric("negative log-likelihood", "lower"),
            "brier": Metric("Brier score", "lower"),
            "ece": Metric("expected calibration error", "lower"),
            "calibration_gap": Metric("confidence minus accuracy", None),  # best at 0, on neither side
            "aurc": Metric("area under the risk-coverage curve", "lower"),
            "reliability": Curve("accuracy by confidence"),
            "risk_coverage": Curve("risk by coverage"),
            "agreement": Metric("agreement with the teacher", "higher", percent=True),
            "kl_to_teacher": Metric("KL divergence to the teacher", "lower"),
            "teacher_accuracy": Metric("the teacher's test accuracy", None, percent=True),
        }
    )

    columns: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "accuracy": "accuracy",
            "worst_class_accuracy": "worst class",
            "memorised": "memorised",
            "agreement": "agreement",
            "nll": "NLL",
            "ece": "ECE",
        }
    )
    training_metric_note: ClassVar[str] = (
        "Share of the training labels, wrong ones included, that the network gives while it trains."
    )

    def check_data(self, data: Data) -> None:
        """One class a sample."""
        check_single_label(self.name, data)

    def label_loss(self) -> Term:
        """Cross-entropy."""
        return CrossEntropy()

    def soft_targets(self, temperature: float) -> Term:
        """T^2 KL of the softened distributions."""
        return SoftTargets(temperature)

    def check(self, name: str, outputs: Outputs, data: Data) -> None:
        """A logit for each class."""
        logits = outputs.logits
        if logits is not None and (logits.ndim != 2 or logits.shape[1] != data.num_classes):
            raise TutelageError(
                f"{name} returns outputs of shape {tuple(logits.shape)} for {data.num_classes} classes of {data.name}; "
                f"give it a classifier with {data.num_classes} outputs"
            )

    def check_labels(self, data: Data) -> None:
        """Every class has a labelled training sample."""
        if data.num_classes < 2:
            raise TutelageError(
                f"{data.name} has {data.num_classes} class, and a network that always names it is always right; "
                "train on 2 classes or more"
            )
        counts = class_counts(data.train.labels, data.num_classes)
        empty = [data.classes[c] for c, count in enumerate(counts) if count == 0]
        if empty == [data.classes[0]]:
            raise TutelageError(
                f"the class {empty[0]!r} of {data.name} has no training sample: the labels start at 1; subtract 1 if "
                "they count the classes from 1, else add samples of it"
            )
        if empty:
            shown = ", ".join(repr(name) for name in empty[:5]) + (", …" if len(empty) > 5 else "")
            evaluated = class_counts(data.test.labels, data.num_classes)
            novel = all(evaluated[c] for c, count in enumerate(counts) if count == 0)
            raise TutelageError(
                f"{len(empty)} of the {data.num_classes} classes of {data.name} have no training sample ({shown}); "
                "add samples or remove the class"
                + (", or choose a method for few_shot or clustering, which evaluate on such classes" if novel else "")
            )

    def training_metric(self, outputs: Outputs, batch: Batch) -> Tensor | None:
        """Samples of which the prediction is the label given, and samples with a label."""
        if outputs.logits is None:
            return None
        labels = hard_labels(batch.targets)
        labelled = labels != UNLABELLED
        right = (outputs.logits.detach().argmax(1) == labels) & labelled
        return torch.stack([right.sum(), labelled.sum()]).float()

    def score(self, model: nn.Module, split: Split, data: Data, compute: Compute) -> float:
        """The accuracy."""
        logits = predict(model, split, device=compute.device, amp=compute.amp, workers=compute.workers)
        return float(accuracy(logits, hard_labels(split.labels).to(logits.device)))

    def evaluate(
        self, model: nn.Module, split: Split, data: Data, compute: Compute, *, teacher: nn.Module | None = None
    ) -> dict[str, Any]:
        """Accuracy, calibration and, with a teacher, fidelity to it.

        Returns:
            ``samples`` (all of the split; those without a label count in the comparison with the teacher alone),
            ``accuracy``, ``per_class_accuracy`` (by class name), ``worst_class_accuracy``, ``per_class_f1`` (by class
            name), ``macro_f1``, ``nll``, ``brier``, ``ece``, ``calibration_gap``, ``aurc``, ``reliability`` (``count``,
            ``accuracy`` and ``confidence`` of 15 bins, ``None`` where one is empty) and ``risk_coverage`` (``coverage``
            and ``risk`` at no more than 101 points, the first and the last among them); with a teacher also
            ``agreement``, ``kl_to_teacher`` and ``teacher_accuracy``. And what operations on the network add, those of
            a network that can abstain for instance.

        Raises:
            TutelageError: a network has another number of classes than the data.
        """
        logits = class_logits(model, "network", data, split, compute.device)
        labels = hard_labels(split.labels).to(logits.device)
        bins, curve = reliability(logits, labels), risk_coverage(logits, labels)
        result: dict[str, Any] = {
            "samples": len(split),
            "accuracy": json_number(accuracy(logits, labels)),
            "per_class_accuracy": _by_class(data, per_class_accuracy(logits, labels)),
            "worst_class_accuracy": json_number(worst_class_accuracy(logits, labels)),
            "per_class_f1": _by_class(data, per_class_f1(logits, labels)),
            "macro_f1": json_number(macro_f1(logits, labels)),
            "nll": json_number(nll(logits, labels)),
            "brier": json_number(brier(logits, labels)),
            "ece": json_number(ece(logits, labels)),
            "calibration_gap": json_number(calibration_gap(logits, labels)),
            "aurc": json_number(curve.area),
            "reliability": {
                "count": bins.count.tolist(),
                "accuracy": json_numbers(bins.accuracy),
                "confidence": json_numbers(bins.confidence),
            },
            "risk_coverage": subsampled(curve),
            **operations.metrics_of(model, split, logits, labels),
        }
        if teacher is not None:
            teacher_logits = class_logits(teacher, "teacher", data, split, compute.device)
            result["agreement"] = json_number(agreement(logits, teacher_logits))
            result["kl_to_teacher"] = json_number(kl_to_teacher(logits, teacher_logits))
            result["teacher_accuracy"] = json_number(accuracy(teacher_logits, labels))
        return result

    def evaluate_training_labels(self, model: nn.Module, data: Data, compute: Compute) -> dict[str, Any]:
        """How many of the wrong labels it has memorised, and its accuracy by clean and given labels."""
        return memorisation(model, data, compute.device)

    def check_extra(self, what: ExtraEvaluation) -> None:
        """All of them can be measured."""

    def evaluate_extra(
        self,
        model: nn.Module,
        data: Data,
        what: ExtraEvaluation,
        compute: Compute,
        *,
        split: str = "test",
        seed: int = 0,
    ) -> dict[str, Any]:
        """Corruptions, an attack, images from elsewhere."""
        return evaluate_extra(model, data, what, compute.device, seed, split=split)

    def describe(self, metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """The main numbers of the test split, and what the training labels and the teacher have to do with them."""
        test, train = metrics["test"], metrics.get("train") or {}

        def of(form: str, *names: str) -> str:
            values = [test.get(name) for name in names]
            return ", ".join("none" if value is None else format(value, form) for value in values)

        if test["accuracy"] is None:
            yield "test accuracy", "none: no test sample has a label"
        else:
            yield "test accuracy, last epoch", f"{test['accuracy']:.2%}"
            if "selected" in metrics:
                selected = metrics["selected"]
                title = f"test accuracy, epoch {selected['epoch']} (best on held-out)"
                yield title, f"{selected['test_accuracy']:.2%}"
            yield "worst class", of(".2%", "worst_class_accuracy")
            yield "NLL, Brier, ECE", of(".4f", "nll", "brier", "ece")
        if train.get("memorised") is not None:
            yield f"memorised of {train['wrong_labels']} wrong labels", f"{train['memorised']:.2%}"
        if test.get("teacher_accuracy") is not None:
            yield "teacher's test accuracy", f"{test['teacher_accuracy']:.2%}"
        if "agreement" in test:
            yield "agreement with the teacher, KL to it", f"{of('.2%', 'agreement')}, {of('.4f', 'kl_to_teacher')}"

    def chance_level(self, data: Data) -> float | None:
        """A little above guessing."""
        return AT_CHANCE / data.num_classes

    def ensemble(self, teachers: Sequence[Tapped]) -> nn.Module:
        """Their mean in probability space."""
        return Ensemble(teachers)


def _by_class(data: Data, values: Tensor) -> dict[str, float | None]:
    return dict(zip(data.classes, json_numbers(values), strict=True))


task = Classification()
