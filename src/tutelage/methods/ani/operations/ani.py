"""Accuracy of a network with adaptive noise: of one draw, and of the mean probabilities of ten."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tutelage.data.data import Split
from tutelage.evaluation.json_numbers import json_number
from tutelage.evaluation.metrics import accuracy
from tutelage.evaluation.predict import predict
from tutelage.models.tapped import Tapped

DRAWS = 10


def metrics(model: Tapped, split: Split, logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """``one_draw_accuracy`` (the mean of ten), ``one_draw_spread`` (their standard deviation), ``ten_draws_accuracy``.

    The network's ``accuracy`` is that of the first draw.
    """
    passes = [logits] + [predict(model, split, device=logits.device, seed=seed) for seed in range(1, DRAWS)]
    each = torch.stack([accuracy(one, labels) for one in passes])
    return {
        "one_draw_accuracy": json_number(each.mean()),
        "one_draw_spread": json_number(each.std()),
        "ten_draws_accuracy": json_number(accuracy(mean_probabilities(passes), labels)),
    }


def mean_probabilities(passes: list[Tensor]) -> Tensor:
    """The mean over passes of the softmax of logits (N, C): (N, C)."""
    return torch.stack([logits.softmax(1) for logits in passes]).mean(0)
