"""Metrics of networks that can abstain."""

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
    """The probability of abstaining, p_a = softmax(s_1 .. s_m, s_a)_a: (N, m) and (N, 1) to (N,)."""
    return torch.cat([logits, abstain], 1).softmax(1)[:, -1]


def selection_score(logits: Tensor, abstain: Tensor) -> Tensor:
    """The log-odds of not abstaining, log((1 - p_a) / p_a): ranks samples as 1 - p_a does, without rounding to 1."""
    return logits.logsumexp(1) - abstain[:, 0]
