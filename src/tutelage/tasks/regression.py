"""The regression task: one or several quantities per sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.data.data import Data, Split
from tutelage.errors import TutelageError
from tutelage.evaluation.json_numbers import json_number, json_numbers
from tutelage.evaluation.predict import predict
from tutelage.models.outputs import Outputs
from tutelage.tasks.metric import Curve, Metric
from tutelage.tasks.prediction import Prediction, Request
from tutelage.tasks.task import Compute, Task
from tutelage.terms.term import Term

SCALES = (1e-2, 1e2)  # outside this range a network with common initial weights takes long to fit its targets


class SquaredError(Term):
    """mean over known quantities k of (f_k - y_k)^2: (B,), in squared units of the quantities.

    Labels (B, K) are NaN if unknown; a sample without known quantities has loss 0.
    """

    reads_teacher = False

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,)."""
        targets = self.required(batch, "the batch, for its targets").targets
        known = ~targets.isnan()
        error = student["logits"] - targets.where(known, 0.0)
        return error.square().where(known, 0.0).sum(1) / known.sum(1).clamp(min=1)


class Regression(Task):
    """Regression: the outputs (B, K) are the predicted quantities, in the units of the labels."""

    metrics: ClassVar[Mapping[str, Metric | Curve]] = MappingProxyType(
        {
            "rmse": Metric("root mean squared error", "lower"),
            "mae": Metric("mean absolute error", "lower"),
            "r2": Metric("explained share of the variance", "higher", percent=True),
            "rmse_of_each": Curve("root mean squared error of each quantity"),
            "teacher_rmse": Metric("the teacher's root mean squared error", None),
        }
    )

    def label_loss(self) -> Term:
        """Squared error."""
        return SquaredError()

    def check(self, name: str, outputs: Outputs, data: Data) -> None:
        """Require one output per quantity."""
        values = outputs.logits
        if values is not None and (values.ndim != 2 or values.shape[1] != data.num_classes):
            raise TutelageError(
                f"{name} returns outputs of shape {tuple(values.shape)} for the {data.num_classes} quantities of "
                f"{data.name}; give it {data.num_classes} outputs"
            )

    def check_labels(self, data: Data) -> None:
        """Require known values of every quantity, on a scale that a network with common initial weights can fit."""
        labels = data.train.labels
        for name, column in zip(data.classes, labels.T, strict=True):
            known = column[~column.isnan()]
            if not len(known):
                raise TutelageError(
                    f"no training sample of {data.name} has {name!r}; label some samples, or leave it out"
                )
            scale = float(known.double().square().mean().sqrt())
            if not SCALES[0] <= scale <= SCALES[1]:
                raise TutelageError(
                    f"{name!r} of {data.name} has a root mean square of {scale:.3g}, too far from 1 for training; "
                    "subtract its mean and divide it by its standard deviation first"
                )

    def evaluate(
        self, model: nn.Module, split: Split, data: Data, compute: Compute, *, teacher: nn.Module | None = None
    ) -> dict[str, Any]:
        """Compute all metrics over the known quantities."""
        labels = split.labels.cpu().double()
        known = ~labels.isnan()
        values = predict(model, split, device=compute.device, amp=compute.amp, workers=compute.workers).cpu().double()
        error = (values - labels).where(known, 0.0)
        counts = known.sum(0)
        centred = (labels - labels.nanmean(0)).where(known, 0.0)
        result: dict[str, Any] = {
            "samples": len(split),
            "rmse": json_number((error.square().sum() / known.sum()).sqrt()),
            "mae": json_number(error.abs().sum() / known.sum()),
            "r2": json_number((1 - error.square().sum(0) / centred.square().sum(0)).nanmean()),
            "rmse_of_each": dict(zip(data.classes, json_numbers((error.square().sum(0) / counts).sqrt()), strict=True)),
        }
        if teacher is not None:
            teacher_logits = predict(teacher, split, device=compute.device, workers=compute.workers).cpu().double()
            teacher_error = (teacher_logits - labels).where(known, 0.0)
            result["teacher_rmse"] = json_number((teacher_error.square().sum() / known.sum()).sqrt())
        return result

    def predictions(self, request: Request) -> Iterator[Prediction]:
        """Each quantity."""
        for row in request.logits().tolist():
            yield Prediction([dict(zip(request.classes, row, strict=True))])


task = Regression()
