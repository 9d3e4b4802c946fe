"""The multi-label task: any number of labels per sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
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
from tutelage.terms.term import Term


class BinaryCrossEntropy(Term):
    """-mean over known labels c of y_c log s(z_c) + (1 - y_c) log(1 - s(z_c)), s the logistic function: (B,) nats.

    Labels (B, C) are 1, 0 or -1 for unknown; a sample without known labels counts 0.
    """

    reads_teacher = False

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,) nats."""
        targets = self.required(batch, "the batch, for its targets").targets
        known = targets != UNLABELLED
        losses = F.binary_cross_entropy_with_logits(student["logits"], targets.clamp(min=0), reduction="none")
        return losses.where(known, 0.0).sum(1) / known.sum(1).clamp(min=1)


class MultiLabel(Task):
    """Any number of labels per sample; a label is predicted if its logit, of (B, C), is above 0."""

    metrics: ClassVar[Mapping[str, Metric | Curve]] = MappingProxyType(
        {
            "mean_average_precision": Metric("mean average precision", "higher", percent=True),
            "average_precision": Curve("average precision of each label"),
            "micro_f1": Metric("F1 over all labels", "higher", percent=True),
            "macro_f1": Metric("mean F1 of the labels", "higher", percent=True),
            "exact_match": Metric("samples with all labels right", "higher", percent=True),
            "hamming_loss": Metric("share of wrong labels", "lower", percent=True),
            "nll": Metric("negative log-likelihood per label", "lower"),
            "teacher_mean_average_precision": Metric("the teacher's mean average precision", None, percent=True),
        }
    )

    def label_loss(self) -> Term:
        """Binary cross-entropy of each label."""
        return BinaryCrossEntropy()

    def check(self, name: str, outputs: Outputs, data: Data) -> None:
        """Require one logit per label."""
        logits = outputs.logits
        if logits is not None and (logits.ndim != 2 or logits.shape[1] != data.num_classes):
            raise TutelageError(
                f"{name} returns outputs of shape {tuple(logits.shape)} for the {data.num_classes} labels of "
                f"{data.name}; give it {data.num_classes} outputs"
            )

    def evaluate(
        self, model: nn.Module, split: Split, data: Data, compute: Compute, *, teacher: nn.Module | None = None
    ) -> dict[str, Any]:
        """Compute all metrics; a label that no known sample has is left out of mean average precision."""
        logits = predict(model, split, device=compute.device, amp=compute.amp, workers=compute.workers).cpu()
        labels = split.labels.cpu()
        known, positive, predicted = labels != UNLABELLED, labels == 1, logits > 0
        precisions = average_precision(logits, labels)
        hits = (predicted & positive).sum(0)
        sizes = (predicted & known).sum(0) + positive.sum(0)
        f1 = 2 * hits / sizes
        wrong = (predicted != positive) & known
        nll = F.binary_cross_entropy_with_logits(logits, positive.float(), reduction="none")[known].mean()
        result: dict[str, Any] = {
            "samples": len(split),
            "mean_average_precision": json_number(precisions.nanmean()),
            "average_precision": dict(zip(data.classes, json_numbers(precisions), strict=True)),
            "micro_f1": json_number(2 * hits.sum() / sizes.sum()),
            "macro_f1": json_number(f1.nanmean()),
            "exact_match": json_number((~wrong[known.any(1)].any(1)).float().mean()),
            "hamming_loss": json_number(wrong.sum() / known.sum()),
            "nll": json_number(nll),
        }
        if teacher is not None:
            teacher_logits = predict(teacher, split, device=compute.device, workers=compute.workers).cpu()
            result["teacher_mean_average_precision"] = json_number(average_precision(teacher_logits, labels).nanmean())
        return result

    def predictions(self, request: Request) -> Iterator[Prediction]:
        """The predicted labels, and the probability of each label."""
        for row in request.logits().sigmoid().tolist():
            shares = dict(zip(request.classes, row, strict=True))
            labels = [name for name, share in shares.items() if share > 0.5]
            yield Prediction([{"labels": labels, **{f"probability of {name}": shares[name] for name in shares}}])

    def row_text(self, row: Mapping[str, Any]) -> str:
        """The predicted labels."""
        name, labels = next(iter(row.values())), row["labels"]
        return f"{name}  {', '.join(labels) or 'none'}"


def average_precision(logits: Tensor, labels: Tensor) -> Tensor:
    """Each label's mean precision at the ranks of its samples: (N, C) and (N, C) to (C,).

    Samples are ranked by logit; ties share a rank. Unknown labels, ``-1``, are left out. NaN for a label that no
    known sample has.
    """
    from sklearn.metrics import average_precision_score

    precisions = []
    for scores, column in zip(logits.T, labels.T, strict=True):
        known = column != UNLABELLED
        positive = column[known] == 1
        precisions.append(average_precision_score(positive, scores[known]) if bool(positive.any()) else float("nan"))
    return torch.tensor(precisions, dtype=torch.float64)


task = MultiLabel()
