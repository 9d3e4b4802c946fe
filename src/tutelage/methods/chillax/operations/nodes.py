"""Metrics of networks whose classes are the leaves of a hierarchy."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tutelage.data.split import Split
from tutelage.evaluation.json_numbers import json_number
from tutelage.evaluation.metrics import only_labelled
from tutelage.methods.chillax.surgery.nodes import hierarchy_of
from tutelage.models.tapped import Tapped


def metrics(model: Tapped, split: Split, logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """``hierarchical_distance``, the mean number of edges between the predicted and the true class."""
    logits, labels = only_labelled(logits, labels)
    distances = hierarchy_of(model.module).distances.to(labels.device)
    return {"hierarchical_distance": json_number(distances[logits.argmax(1), labels].float().mean())}
