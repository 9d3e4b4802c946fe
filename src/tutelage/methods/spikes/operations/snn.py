"""Accuracy of a spiking network over draws of its encoding and over time, and its number of spikes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tutelage.data.data import Split
from tutelage.evaluation.json_numbers import json_number
from tutelage.evaluation.metrics import accuracy
from tutelage.evaluation.predict import predict_roles
from tutelage.models.tapped import Tapped

DRAWS = 5


def metrics(model: Tapped, split: Split, logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Metrics of a ``SpikingNetwork`` over five draws of the encoding.

    Returns:
        ``one_draw_accuracy``, the mean over draws, and ``one_draw_spread``, their standard deviation;
        ``accuracy_by_steps``, the mean accuracy of the counts after 1, 2, .. T steps; ``spikes_per_image``, the mean
        number of spikes of all neurons, and ``spikes_per_layer``; the encoder's spikes are not included. The network's
        ``accuracy`` is that of the first draw. Among equal counts the lowest class is predicted.
    """
    draws = [predict_roles(model, split, ["spikes"], device=logits.device, seed=seed) for seed in range(DRAWS)]
    by_steps = torch.stack([torch.stack([accuracy(c, labels) for c in s.cumsum(1).unbind(1)]) for s in draws])
    activity = predict_roles(model, split, ["activity"], device=logits.device).mean(0)
    return {
        "one_draw_accuracy": json_number(by_steps[:, -1].mean()),
        "one_draw_spread": json_number(by_steps[:, -1].std()),
        "accuracy_by_steps": [json_number(value) for value in by_steps.mean(0)],
        "spikes_per_image": json_number(activity.sum()),
        "spikes_per_layer": [json_number(value) for value in activity],
    }
