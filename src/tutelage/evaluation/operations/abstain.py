"""A network that can abstain: samples are ranked by how much it bets on its classes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tutelage.data.data import Split
from tutelage.evaluation.numbers import number
from tutelage.evaluation.predict import predict_roles
from tutelage.evaluation.selective import commitment, reservation, risk_coverage, thinned
from tutelage.models.surgery.abstain import ABSTAIN
from tutelage.models.tapped import Tapped


def metrics(model: Tapped, split: Split, logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """``reservation`` (the mean probability of abstaining), ``aurc_by_abstention``, ``risk_coverage_by_abstention``."""
    abstain = predict_roles(model, split, (ABSTAIN,), device=logits.device)
    curve = risk_coverage(logits, labels, commitment(logits, abstain))
    return {
        "reservation": number(reservation(logits, abstain).mean()),
        "aurc_by_abstention": number(curve.area),
        "risk_coverage_by_abstention": thinned(curve),
    }
