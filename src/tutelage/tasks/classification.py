"""The classification task: one of several classes per sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tutelage.attacks.lookup import find_attacks
from tutelage.config import ExtraEvaluation
from tutelage.data.batch import UNLABELLED, Batch, hard_labels
from tutelage.data.data import Data, Split
from tutelage.data.targets import class_counts
from tutelage.errors import TutelageError
from tutelage.evaluation import operations
from tutelage.evaluation.class_probabilities import ClassProbabilities, row_text
from tutelage.evaluation.extra import evaluate_extra
from tutelage.evaluation.json_numbers import json_number, json_numbers
from tutelage.evaluation.memorisation import memorisation
from tutelage.evaluation.metrics import (
    accuracy,
    agreement,
    brier,
    calibration_gap,
    confusion,
    ece,
    kl_to_teacher,
    macro_auroc,
    macro_f1,
    nll,
    per_class_accuracy,
    per_class_f1,
    per_class_precision,
    reliability,
    top_accuracy,
    worst_class_accuracy,
)
from tutelage.evaluation.predict import class_logits, predict
from tutelage.evaluation.selective import risk_coverage, subsampled
from tutelage.models.ensemble import Ensemble
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.tasks.metric import Curve, Metric
from tutelage.tasks.prediction import Prediction, Request
from tutelage.tasks.task import Compute, Task, check_single_label
from tutelage.terms import CrossEntropy, SoftTargets
from tutelage.terms.term import Term

TOP = 5
LARGEST_CONFUSION = 100  # classes; a larger matrix would dominate result.json
AT_CHANCE = 1.5  # times chance accuracy; a teacher below it causes a warning


class Classification(Task):
    """One of several classes per sample; the largest of the logits (B, C) is the prediction.

    Soft labels count as their largest class.
    """

    loss_name: ClassVar[str] = "ce"
    outputs_are_logits: ClassVar[bool] = True
    ranked: ClassVar[bool] = True
    metrics: ClassVar[Mapping[str, Metric | Curve]] = MappingProxyType(
        {
            "accuracy": Metric("test accuracy", "higher", percent=True),
            "top5_accuracy": Metric(
                "test accuracy, label among five classes", "higher", percent=True, in_studies=False
            ),
            "per_class_accuracy": Curve("accuracy of each class"),
            "worst_class_accuracy": Metric("accuracy of the worst class", "higher", percent=True),
            "per_class_precision": Curve("precision of each class"),
            "per_class_f1": Curve("F1 of each class"),
            "macro_f1": Metric("mean F1 of the classes", "higher", percent=True, in_studies=False),
            "macro_auroc": Metric("mean AUROC of the classes", "higher", percent=True, in_studies=False),
            "confusion": Curve("predicted classes by true class"),
            "nll": Metric("negative log-likelihood", "lower"),
            "brier": Metric("Brier score", "lower"),
            "ece": Metric("expected calibration error", "lower"),
            "calibration_gap": Metric("confidence minus accuracy", None),  # best at 0
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
    class_metrics: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"recall": "per_class_accuracy", "precision": "per_class_precision", "F1": "per_class_f1"}
    )
    class_note: ClassVar[str] = (
        "Recall: the share of a class's samples that are predicted as it. Precision: the share of its predictions that "
        "are right."
    )
    training_metric_note: ClassVar[str] = (
        "Accuracy on the given training labels, including wrong ones, during training."
    )

    def check_data(self, data: Data) -> None:
        """Require one class per sample."""
        check_single_label(self.name, data)

    def label_loss(self) -> Term:
        """Cross-entropy."""
        return CrossEntropy()

    def soft_targets(self, temperature: float) -> Term:
        """T^2 KL divergence of the softened distributions."""
        return SoftTargets(temperature)

    def check(self, name: str, outputs: Outputs, data: Data) -> None:
        """Require one logit per class."""
        logits = outputs.logits
        if logits is not None and (logits.ndim != 2 or logits.shape[1] != data.num_classes):
            raise TutelageError(
                f"{name} returns outputs of shape {tuple(logits.shape)} for {data.num_classes} classes of {data.name}; "
                f"give it a classifier with {data.num_classes} outputs"
            )

    def check_labels(self, data: Data) -> None:
        """Require a labelled training sample of every class."""
        if data.num_classes < 2:
            raise TutelageError(
                f"{data.name} has {data.num_classes} class, so that constant predictions are always right; "
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
            names = ", ".join(repr(name) for name in empty[:5]) + (", …" if len(empty) > 5 else "")
            evaluated = class_counts(data.test.labels, data.num_classes)
            novel = all(evaluated[c] for c, count in enumerate(counts) if count == 0)
            raise TutelageError(
                f"{len(empty)} of the {data.num_classes} classes of {data.name} have no training sample ({names}); "
                "add samples or remove the class"
                + (", or choose a method for few_shot or clustering, which evaluate on such classes" if novel else "")
            )

    def training_metric(self, outputs: Outputs, batch: Batch) -> Tensor | None:
        """The numbers of correctly predicted and of labelled samples."""
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
            ``samples`` (all of the split; unlabelled samples count only in the comparison with the teacher),
            ``accuracy``, ``top5_accuracy`` (``None`` for five classes or fewer), ``per_class_accuracy`` (by class
            name; it is also the recall), ``worst_class_accuracy``, ``per_class_precision`` and ``per_class_f1`` (by
            class name), ``macro_f1``, ``macro_auroc``, ``confusion`` (rows are true classes, columns predicted ones;
            for up to 100 classes), ``nll``, ``brier``, ``ece``, ``calibration_gap``, ``aurc``,
            ``reliability`` (``count``, ``accuracy`` and ``confidence`` of 15 bins, ``None`` if a bin is empty) and
            ``risk_coverage`` (``coverage`` and ``risk`` at 101 points at most, including the first and the last); with
            a teacher also
            ``agreement``, ``kl_to_teacher`` and ``teacher_accuracy``. Operations on
            the network add their metrics, for example those of abstention.

        Raises:
            TutelageError: the numbers of classes of a network and of the data differ.
        """
        logits = class_logits(model, "network", data, split, compute.device)
        labels = hard_labels(split.labels).to(logits.device)
        bins, curve = reliability(logits, labels), risk_coverage(logits, labels)
        result: dict[str, Any] = {
            "samples": len(split),
            "accuracy": json_number(accuracy(logits, labels)),
            "top5_accuracy": json_number(top_accuracy(logits, labels, TOP)) if data.num_classes > TOP else None,
            "per_class_accuracy": _by_class(data, per_class_accuracy(logits, labels)),
            "worst_class_accuracy": json_number(worst_class_accuracy(logits, labels)),
            "per_class_precision": _by_class(data, per_class_precision(logits, labels)),
            "per_class_f1": _by_class(data, per_class_f1(logits, labels)),
            "macro_f1": json_number(macro_f1(logits, labels)),
            "macro_auroc": json_number(macro_auroc(logits, labels)),
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
        if data.num_classes <= LARGEST_CONFUSION:
            result["confusion"] = confusion(logits, labels).tolist()
        if teacher is not None:
            teacher_logits = class_logits(teacher, "teacher", data, split, compute.device)
            result["agreement"] = json_number(agreement(logits, teacher_logits))
            result["kl_to_teacher"] = json_number(kl_to_teacher(logits, teacher_logits))
            result["teacher_accuracy"] = json_number(accuracy(teacher_logits, labels))
        return result

    def evaluate_training_labels(self, model: nn.Module, data: Data, compute: Compute) -> dict[str, Any]:
        """The share of wrong labels that the network has memorised, and its accuracy on clean and on given labels."""
        return memorisation(model, data, compute.device)

    def check_extra(self, what: ExtraEvaluation) -> None:
        """Accept all evaluations; refuse unknown attacks, before anything trains."""
        find_attacks(what.attacks)

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
        """Evaluate on corrupted, adversarial and out-of-distribution images."""
        return evaluate_extra(model, data, what, compute.device, seed, split=split)

    def describe(self, metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """The main metrics of the test split, memorisation of wrong labels and agreement with the teacher."""
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

    def predictions(self, request: Request) -> Iterator[Prediction]:
        """The most probable classes with their probabilities, calibrated and with a prediction set if possible."""
        for row in ClassProbabilities.of(request.logits(), request.classes, request.calibration).rows(request.top):
            yield Prediction([row])

    def row_text(self, row: Mapping[str, Any]) -> str:
        """The classes with their probabilities in percent, and the prediction set in braces."""
        return row_text(row)

    def chance_level(self, data: Data) -> float | None:
        """An accuracy somewhat above chance."""
        return AT_CHANCE / data.num_classes

    def ensemble(self, teachers: Sequence[Tapped]) -> nn.Module:
        """An ensemble that averages the teachers' probabilities."""
        return Ensemble(teachers)


def _by_class(data: Data, values: Tensor) -> dict[str, float | None]:
    return dict(zip(data.classes, json_numbers(values), strict=True))


task = Classification()
