"""The second fit: the neural filter learns which images have an object, and its threshold is chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.data.data import Data, Split
from tutelage.data.targets.boxes import OBJECT
from tutelage.errors import TutelageError
from tutelage.evaluation.json_numbers import json_number
from tutelage.evaluation.predict import predict_roles
from tutelage.methods.ghnd.neural_filter import NeuralFilter, object_probability
from tutelage.methods.ghnd.surgery.neural_filter import ROLE
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.tasks import Compute, Metric, Task
from tutelage.terms.term import Term

SMALLEST_SIDE = 1.0  # pixels; a smaller box is no object


def has_object(boxes: Tensor) -> Tensor:
    """Whether an image has a box that counts with sides above one pixel: (B, M, 6) to (B,) bool."""
    sides = (boxes[..., 2:4] - boxes[..., :2]).amin(2)
    return ((boxes[..., 4] >= 0) & (boxes[..., 5] == OBJECT) & (sides > SMALLEST_SIDE)).any(1)


class ObjectCrossEntropy(Term):
    """-log softmax(z)_y of the filter's logits z, (B, 2); y is 1 for an image with an object, else 0: (B,) nats."""

    roles: tuple[str, ...] = (ROLE,)
    reads_teacher = False

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,)."""
        boxes = self.required(batch, "the batch, for its boxes").targets
        return F.cross_entropy(student[ROLE], has_object(boxes).long(), reduction="none")


class ObjectPresence(Task):
    """Whether an image has an object, judged by the area under the ROC curve; for the fit of the filter alone."""

    roles: ClassVar[tuple[str, ...]] = (ROLE,)
    metrics: ClassVar[Mapping[str, Metric]] = MappingProxyType({"roc_auc": Metric("area under ROC curve", "higher")})

    def evaluate(
        self, model: nn.Module, split: Split, data: Data, compute: Compute, *, teacher: nn.Module | None = None
    ) -> dict[str, Any]:
        """The area under the ROC curve; ``None`` if all images have an object, or none has."""
        probabilities = _probabilities(model, split, compute.device)
        area = roc_auc(probabilities, has_object(split.labels).to(probabilities.device))
        return {"samples": len(split), "roc_auc": json_number(area)}


def _probabilities(model: nn.Module, split: Split, device: torch.device | str) -> Tensor:
    return object_probability(predict_roles(cast(Tapped, model), split, (ROLE,), device=device))


def roc_auc(scores: Tensor, positive: Tensor) -> float:
    """The probability that a positive sample has a larger score than a negative one, ties counting half.

    Args:
        scores: (N,).
        positive: (N,) bool.

    Returns:
        NaN if all samples are positive, or none is.
    """
    positives, negatives = scores[positive].double(), scores[~positive].double().sort().values
    if len(positives) == 0 or len(negatives) == 0:
        return math.nan
    below = torch.searchsorted(negatives, positives) + torch.searchsorted(negatives, positives, right=True)
    return float(below.double().mean()) / (2 * len(negatives))


def threshold_for(scores: Tensor, positive: Tensor, recall: float) -> float:
    """The largest threshold that at least the share ``recall`` of the positive samples reach: (N,), (N,) bool.

    Raises:
        TutelageError: no sample is positive.
    """
    ordered = scores[positive].sort(descending=True).values
    if len(ordered) == 0:
        raise TutelageError("no held-out image has an object, so that no threshold has a recall; hold out more images")
    return float(ordered[max(1, math.ceil(recall * len(ordered) - 1e-9)) - 1])


def set_threshold(
    model: Tapped, neural_filter: NeuralFilter, split: Split, recall: float, device: torch.device | str
) -> dict[str, Any]:
    """Choose the filter's threshold on a split; returns it with the recall and the share of empty images filtered."""
    probabilities, positive = _probabilities(model, split, device).cpu(), has_object(split.labels).cpu()
    threshold = threshold_for(probabilities, positive, recall)
    neural_filter.threshold.fill_(threshold)
    passed = probabilities >= threshold
    return {
        "threshold": threshold,
        "roc_auc": json_number(roc_auc(probabilities, positive)),
        "recall": json_number(passed[positive].double().mean()),
        "empty_filtered": json_number((~passed)[~positive].double().mean()),
    }
