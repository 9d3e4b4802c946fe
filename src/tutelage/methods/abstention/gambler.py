"""Bets on classes, with an output for what is not bet: Deep Gamblers (Liu et al. 2019, arXiv 1907.00208)."""

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
    """l = -log(p_y + p_a / o) per sample, with (p, p_a) = softmax(s_1 .. s_m, s_a) over all m + 1 outputs.

    Args:
        logits: (B, m), s of the classes.
        abstain: (B, 1), s_a.
        labels: (B,) int64, ``-1`` for no label (value and gradient are 0); or (B, m) soft ones, whose largest counts.
        payoff: o, with 1 < o < m.

    Returns:
        (B,) nats.
    """
    labels = checked_labels(labels, class_logits(logits).shape[1])
    places = labels.where(labels != UNLABELLED, 0)[:, None]
    returns = log_returns(logits, abstain, payoff).gather(1, places).squeeze(1)
    return -returns.where(labels != UNLABELLED, 0.0)


@full_precision
def soft_bet(logits: Tensor, abstain: Tensor, probs: Tensor, payoff: float) -> Tensor:
    """L = -sum_j q_j log(p_j + p_a / o) per sample: ``gambler``, where each class j wins with probability q_j.

    Its minimum is Kelly's portfolio with cash: where q_max <= 1 / o everything goes to p_a.

    Args:
        logits, abstain, payoff: as of ``gambler``.
        probs: (B, m), q.

    Returns:
        (B,) nats.
    """
    return -(probs * log_returns(logits, abstain, payoff)).sum(1)


@full_precision
def log_returns(logits: Tensor, abstain: Tensor, payoff: float) -> Tensor:
    """log(p_j + p_a / o) of each class, (B, m), from logarithms: p_a / o itself would be rounded to 0."""
    log_probs = torch.cat([class_logits(logits), abstain], 1).log_softmax(1)
    return torch.logaddexp(log_probs[:, :-1], log_probs[:, -1:] - math.log(payoff))


def check_payoff(payoff: float, classes: int) -> None:
    """Refuse a payoff at which abstaining always pays, or never does."""
    if not 1 < payoff < classes:
        raise TutelageError(
            f"a payoff of {payoff:g} teaches nothing: at 1 or less it always pays to abstain, at the classes' number, "
            f"{classes}, or more it never does; take one between, for instance {min(2.2, (1 + classes) / 2):g}"
        )


class Gambler(Term):
    """``gambler`` of the student's logits and its output ``abstain``, per sample (B,).

    Args:
        payoff: o > 1; the first batch must show more classes than that.
    """

    roles = ("logits", "abstain")

    def __init__(self, payoff: float) -> None:
        super().__init__()
        self.payoff = payoff

    @property
    def teacher_roles(self) -> tuple[str, ...]:
        """It reads nothing of a teacher."""
        return ()

    def build(self, student: Outputs, teacher: Outputs | None) -> None:
        """Check the payoff against the number of classes."""
        check_payoff(self.payoff, student["logits"].shape[1])

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,) nats."""
        if batch is None:
            raise ValueError("Gambler needs the batch, for its targets")
        return gambler(student["logits"], student["abstain"], batch.targets, self.payoff)


class SoftBet(Gambler):
    """``soft_bet`` with q = A(softmax(v), y): the teacher's probabilities, adjusted, per sample (B,).

    Args:
        payoff: as of ``Gambler``.
        adjustment: A.
    """

    def __init__(self, payoff: float, adjustment: Adjustment = probability_shift) -> None:
        super().__init__(payoff)
        self.adjustment = adjustment

    @property
    def teacher_roles(self) -> tuple[str, ...]:
        """The logits alone: the teacher answers always."""
        return ("logits",)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,) nats."""
        probs = adjusted(teacher, batch, self.adjustment)
        return soft_bet(student["logits"], student["abstain"], probs, self.payoff)
