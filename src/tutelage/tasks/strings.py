"""The strings task: strings of a fixed length, for example the digits of a barcode."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tutelage.data.batch import UNLABELLED, Batch
from tutelage.data.data import Data, Split
from tutelage.errors import TutelageError
from tutelage.evaluation.json_numbers import json_number, json_numbers
from tutelage.evaluation.predict import predict
from tutelage.models.outputs import Outputs
from tutelage.tasks.metric import Curve, Metric
from tutelage.tasks.prediction import Prediction, Request
from tutelage.tasks.task import Compute, Task
from tutelage.terms import CrossEntropy, SoftTargets
from tutelage.terms.term import Term


class Strings(Task):
    """Strings of L symbols; the symbol read at each position is the one with the largest logit of (B, L, C)."""

    outputs_are_logits: ClassVar[bool] = True
    metrics: ClassVar[Mapping[str, Metric | Curve]] = MappingProxyType(
        {
            "string_accuracy": Metric("strings read without an error", "higher", percent=True),
            "symbol_accuracy": Metric("symbols read rightly", "higher", percent=True),
            "accuracy_by_place": Curve("accuracy of each position"),
            "nll": Metric("negative log-likelihood per symbol", "lower"),
            "teacher_string_accuracy": Metric("the teacher's string accuracy", None, percent=True),
        }
    )

    def label_loss(self) -> Term:
        """Cross-entropy, averaged over positions."""
        return CrossEntropy()

    def soft_targets(self, temperature: float) -> Term:
        """Hinton's loss, averaged over positions."""
        return SoftTargets(temperature)

    def check(self, name: str, outputs: Outputs, data: Data) -> None:
        """Require one logit for each symbol at each position."""
        expected = (data.train.labels.shape[1], data.num_classes)
        logits = outputs.logits
        if logits is not None and tuple(logits.shape[1:]) != expected:
            raise TutelageError(
                f"{name} returns outputs of shape {tuple(logits.shape)} for strings of {expected[0]} of {expected[1]} "
                f"symbols in {data.name}; give it outputs (B, {expected[0]}, {expected[1]})"
            )

    def training_metric(self, outputs: Outputs, batch: Batch) -> Tensor | None:
        """The numbers of strings read without an error and of labelled strings."""
        if outputs.logits is None:
            return None
        known = (batch.targets != UNLABELLED).any(1)
        return torch.stack([(_right(outputs.logits.detach(), batch.targets) & known).sum(), known.sum()]).float()

    def score(self, model: nn.Module, split: Split, data: Data, compute: Compute) -> float:
        """The string accuracy."""
        logits = predict(model, split, device=compute.device, amp=compute.amp, workers=compute.workers)
        labels = split.labels.to(logits.device)
        known = (labels != UNLABELLED).any(1)
        return float(_right(logits, labels)[known].double().mean())

    def evaluate(
        self, model: nn.Module, split: Split, data: Data, compute: Compute, *, teacher: nn.Module | None = None
    ) -> dict[str, Any]:
        """Compute all metrics over the known symbols."""
        logits = predict(model, split, device=compute.device, amp=compute.amp, workers=compute.workers)
        labels = split.labels.to(logits.device)
        known = labels != UNLABELLED
        hits = (logits.argmax(2) == labels) & known
        nll = -logits.log_softmax(2).gather(2, labels.clamp(min=0)[:, :, None])[:, :, 0]
        result: dict[str, Any] = {
            "samples": len(split),
            "string_accuracy": json_number(_right(logits, labels)[known.any(1)].double().mean()),
            "symbol_accuracy": json_number(hits.sum() / known.sum()),
            "accuracy_by_place": json_numbers(hits.sum(0) / known.sum(0)),
            "nll": json_number(nll[known].mean()),
            **self.decision_metrics(logits, labels),
        }
        if teacher is not None:
            teacher_logits = predict(teacher, split, device=compute.device, workers=compute.workers)
            right = _right(teacher_logits, labels)[known.any(1)]
            result["teacher_string_accuracy"] = json_number(right.double().mean())
        return result

    def decision_metrics(self, logits: Tensor, labels: Tensor) -> dict[str, Any]:
        """Metrics of further decision rules, from logits (N, L, C) and labels (N, L); subclasses override this."""
        return {}

    def predictions(self, request: Request) -> Iterator[Prediction]:
        """The string of the most probable symbols, and its probability."""
        values, symbols = request.logits().log_softmax(2).max(2)
        for numbers, share in zip(symbols.tolist(), values.sum(1).exp().tolist(), strict=True):
            text = "".join(request.classes[number] for number in numbers)
            yield Prediction([{"string": text, "probability": share}])


def _right(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether all known symbols are predicted: (B, L, C) and (B, L) to (B,) bool."""
    return ((logits.argmax(2) == labels) | (labels == UNLABELLED)).all(1)


task = Strings()
