"""Metrics of probabilistic neural networks, which can reject inputs."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tutelage.data.split import Split
from tutelage.evaluation.json_numbers import json_number
from tutelage.evaluation.metrics import only_labelled
from tutelage.methods.pnn.surgery.pnn import head_of
from tutelage.models.tapped import Tapped


def metrics(model: Tapped, split: Split, logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """The mean of the largest score, ``parzen_confidence``, the share ``rejected``, and ``accepted_accuracy``."""
    best = logits.amax(1)
    rejected = best < head_of(model.module).threshold.to(best)
    accepted, classes = only_labelled(logits[~rejected], labels[~rejected])
    return {
        "parzen_confidence": json_number(best.exp().mean()),
        "rejected": json_number(rejected.float().mean()),
        "accepted_accuracy": json_number((accepted.argmax(1) == classes).float().mean()),
    }
