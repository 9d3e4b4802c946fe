"""The ordinal task: one of several ordered classes per sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from torch import Tensor, nn

from tutelage.data.batch import Batch, hard_labels
from tutelage.data.data import Data, Split
from tutelage.evaluation.json_numbers import json_number
from tutelage.evaluation.metrics import only_labelled
from tutelage.evaluation.ordinal import expected_grade, grade_error, quadratic_kappa
from tutelage.evaluation.predict import class_logits, predict
from tutelage.models.outputs import Outputs
from tutelage.tasks.classification import Classification
from tutelage.tasks.metric import Curve, Metric
from tutelage.tasks.prediction import Prediction, Request
from tutelage.tasks.task import Compute


class Ordinal(Classification):
    """Ordinal classification: one of several ordered grades per sample, such as a severity or a rating.

    Networks and losses are those of classification. The prediction is the expectation of the grade under the softmax
    of the logits (B, C), rounded, which suits quadratically weighted kappa better than the largest logit does. The
    metrics ``kappa_by_argmax``, ``accuracy`` and all others of classification are those of the largest logit.
    """

    metrics: ClassVar[Mapping[str, Metric | Curve]] = MappingProxyType(
        {
            "kappa": Metric("quadratically weighted kappa", "higher"),
            "grade_error": Metric("mean absolute error in grades", "lower"),
            "kappa_by_argmax": Metric("quadratically weighted kappa of the largest logit", "higher"),
            "teacher_kappa": Metric("the teacher's quadratically weighted kappa", None),
            **Classification.metrics,
        }
    )
    columns: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"kappa": "kappa", "grade_error": "grade error", **Classification.columns}
    )
    ranked: ClassVar[bool] = False
    decision_rule: ClassVar[str] = "the expected grade, sum_k k softmax(z)_k, rounded"
    training_metric_note: ClassVar[str] = "Kappa is not a mean over samples, so it is not shown for training batches."

    def training_metric(self, outputs: Outputs, batch: Batch) -> Tensor | None:
        """None: kappa is not a mean over samples."""
        return None

    def score(self, model: nn.Module, split: Split, data: Data, compute: Compute) -> float:
        """The quadratically weighted kappa of rounded expectations."""
        logits = predict(model, split, device=compute.device, amp=compute.amp, workers=compute.workers)
        return float(_kappa(logits, hard_labels(split.labels).to(logits.device)))

    def evaluate(
        self, model: nn.Module, split: Split, data: Data, compute: Compute, *, teacher: nn.Module | None = None
    ) -> dict[str, Any]:
        """The metrics of classification, and ``kappa``, ``grade_error`` and ``kappa_by_argmax``.

        With a teacher also ``teacher_kappa``.
        """
        logits = class_logits(model, "network", data, split, compute.device)
        labels = hard_labels(split.labels).to(logits.device)
        outputs, given = only_labelled(logits, labels)
        result = {
            **super().evaluate(model, split, data, compute, teacher=teacher),
            "kappa": json_number(_kappa(logits, labels)),
            "grade_error": json_number(grade_error(expected_grade(outputs), given)),
            "kappa_by_argmax": json_number(quadratic_kappa(outputs.argmax(1), given)),
        }
        if teacher is not None:
            teacher_logits = class_logits(teacher, "teacher", data, split, compute.device)
            result["teacher_kappa"] = json_number(_kappa(teacher_logits, labels))
        return result

    def describe(self, metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Kappa and the error in grades, then the rest of classification."""
        test = metrics["test"]
        for name in ("kappa", "grade_error", "kappa_by_argmax", "teacher_kappa"):
            metric, value = self.metrics[name], test.get(name)
            if isinstance(metric, Metric) and value is not None:
                yield metric.title, metric.text(value)
        if "selected" in metrics:
            selected = metrics["selected"]
            yield f"kappa, epoch {selected['epoch']} (best on held-out)", f"{selected['test_kappa']:.4g}"
        yield from super().describe({key: value for key, value in metrics.items() if key != "selected"})

    def predictions(self, request: Request) -> Iterator[Prediction]:
        """The expected grade, rounded, and its probability."""
        logits = request.logits()
        grades = expected_grade(logits)
        probabilities = logits.softmax(1).gather(1, grades[:, None])[:, 0]
        for grade, probability in zip(grades.tolist(), probabilities.tolist(), strict=True):
            yield Prediction([{"class": request.classes[grade], "probability": probability}])

    def chance_level(self, data: Data) -> float | None:
        """None: a low kappa need not mean a wrong teacher."""
        return None


def _kappa(logits: Tensor, labels: Tensor) -> Tensor:
    logits, labels = only_labelled(logits, labels)
    return quadratic_kappa(expected_grade(logits), labels)


task = Ordinal()
