"""The loss of Deep Gamblers, with an output for abstention: Liu et al. 2019, arXiv 1907.00208."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tutelage.data.batch import UNLABELLED, Batch
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs, class_logits
from tutelage.terms.knowledge_adjustment import Adjustment, adjusted, probability_shift
from tutelage.terms.precision import full_precision
from tutelage.terms.targets import checked_labels
from tutelage.terms.term import Term


@full_precision
def gambler(logits: Tensor, abstain: Tensor, labels: Tensor, payoff: float) -> Tensor:
    """The gambler's loss, l = -log(p_y + p_a / o), per sample, with (p, p_a) = softmax(s_1 .. s_m, s_a).

    Args:
        logits: s_1 .. s_m, (B, m).
        abstain: s_a, (B, 1).
        labels: (B,) int64, ``-1`` for no label (value and gradient are 0); or soft labels (B, m), whose largest class
            counts.
        payoff: o, with 1 < o < m.

    Returns:
        (B,) nats.
    """
    labels = checked_labels(labels, class_logits(logits).shape[1])
    indices = labels.where(labels != UNLABELLED, 0)[:, None]
    returns = log_returns(logits, abstain, payoff).gather(1, indices).squeeze(1)
    return -returns.where(labels != UNLABELLED, 0.0)


@full_precision
def soft_bet(logits: Tensor, abstain: Tensor, probs: Tensor, payoff: float) -> Tensor:
    """``gambler`` with soft labels, L = -sum_j q_j log(p_j + p_a / o), per sample.

    Its minimum is Kelly's portfolio with cash: if q_max <= 1 / o, then p_a = 1.

    Args:
        logits, abstain, payoff: as in ``gambler``.
        probs: q, (B, m).

    Returns:
        (B,) nats.
    """
    return -(probs * log_returns(logits, abstain, payoff)).sum(1)


@full_precision
def log_returns(logits: Tensor, abstain: Tensor, payoff: float) -> Tensor:
    """log(p_j + p_a / o) of each class, (B, m), computed from logarithms, since p_a / o could be rounded to 0."""
    log_probs = torch.cat([class_logits(logits), abstain], 1).log_softmax(1)
    return torch.logaddexp(log_probs[:, :-1], log_probs[:, -1:] - math.log(payoff))


def check_payoff(payoff: float, classes: int) -> None:
    """Raise an error for a payoff with which abstaining is always or never optimal."""
    if not 1 < payoff < classes:
        raise TutelageError(
            f"the payoff must be between 1, where abstaining is always optimal, and the number of classes, {classes}, "
            f"where it never is, got {payoff:g}; use for example {min(2.2, (1 + classes) / 2):g}"
        )


class Gambler(Term):
    """``gambler`` of the student's logits and its output ``abstain``, per sample (B,).

    Args:
        payoff: o, with 1 < o < the number of classes.
    """

    roles = ("logits", "abstain")
    reads_teacher = False

    def __init__(self, payoff: float) -> None:
        super().__init__()
        self.payoff = payoff

    def build(self, student: Outputs, teacher: Outputs | None) -> None:
        """Check the payoff against the number of classes."""
        check_payoff(self.payoff, student["logits"].shape[1])

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,) nats."""
        targets = self.required(batch, "the batch, for its targets").targets
        return gambler(student["logits"], student["abstain"], targets, self.payoff)


class SoftBet(Gambler):
    """``soft_bet`` with q = A(softmax(v), y): the teacher's probabilities, adjusted, per sample (B,).

    Args:
        payoff: as in ``Gambler``.
        adjustment: A.
    """

    def __init__(self, payoff: float, adjustment: Adjustment = probability_shift) -> None:
        super().__init__(payoff)
        self.adjustment = adjustment

    @property
    def teacher_roles(self) -> tuple[str, ...]:
        """The logits alone; the teacher cannot abstain."""
        return ("logits",)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,) nats."""
        probs = adjusted(teacher, batch, self.adjustment)
        return soft_bet(student["logits"], student["abstain"], probs, self.payoff)
