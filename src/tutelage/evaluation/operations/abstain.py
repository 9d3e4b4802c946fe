"""A network that can abstain: samples are ranked by how much it bets on its classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tutelage.data.data import Split
from tutelage.evaluation.json_numbers import json_number
from tutelage.evaluation.predict import predict_roles
from tutelage.evaluation.selective import risk_coverage, subsampled
from tutelage.models.surgery.abstain import ABSTAIN
from tutelage.models.tapped import Tapped


def metrics(model: Tapped, split: Split, logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """The mean ``abstain_probability``, ``aurc_by_abstention`` and ``risk_coverage_by_abstention``."""
    abstain = predict_roles(model, split, (ABSTAIN,), device=logits.device)
    curve = risk_coverage(logits, labels, selection_score(logits, abstain))
    return {
        "abstain_probability": json_number(abstain_probability(logits, abstain).mean()),
        "aurc_by_abstention": json_number(curve.area),
        "risk_coverage_by_abstention": subsampled(curve),
    }


def abstain_probability(logits: Tensor, abstain: Tensor) -> Tensor:
    """p_a = softmax(s_1 .. s_m, s_a)_a, what is not bet on any class: (N, m) and (N, 1) to (N,)."""
    return torch.cat([logits, abstain], 1).softmax(1)[:, -1]


def selection_score(logits: Tensor, abstain: Tensor) -> Tensor:
    """log((1 - p_a) / p_a), the log-odds of betting at all: it ranks samples as 1 - p_a does, and is never rounded."""
    return logits.logsumexp(1) - abstain[:, 0]
