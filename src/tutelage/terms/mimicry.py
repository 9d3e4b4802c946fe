"""Deep mutual learning (DML), where peers are each other's targets: Zhang et al. 2018, arXiv 1706.00384."""

from __future__ import annotations

import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.models.outputs import Outputs
from tutelage.terms.soft_targets import SoftTargets, soft_targets
from tutelage.terms.term import Term


def mimicry_loss(student_logits: Tensor, *peer_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """The mimicry loss of deep mutual learning, 1/(K-1) sum_l T^2 KL(softmax(z_l / T) || softmax(z / T)), per sample.

    Args:
        student_logits: z, (B, C); or of tokens or maps, as in ``soft_targets``.
        peer_logits: z_l of each of the K - 1 peers, of the same shape. No gradient reaches them.
        temperature: T > 0; the paper has 1.

    Returns:
        (B,) nats times T^2.
    """
    return torch.stack([soft_targets(student_logits, peer, temperature) for peer in peer_logits]).mean(0)


class Mimicry(Term):
    """``mimicry_loss`` of the student and its peers, per sample (B,).

    Each peer is a target. ``SoftTargets`` with the same peers matches the mean of their probabilities instead (the
    paper's DML_e, which it reports to be worse).

    Args:
        temperature: T > 0; the paper has 1.
        soft_targets: the loss for one peer, for outputs that are no logits (B, C); by default ``SoftTargets``.
    """

    reads_labels = False

    def __init__(self, temperature: float = 1.0, soft_targets: Term | None = None) -> None:
        super().__init__()
        self.soft_targets = SoftTargets(temperature) if soft_targets is None else soft_targets

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,) nats times T^2."""
        cohort = self.required(teacher, "the peers' outputs")
        return torch.stack([self.soft_targets(student, peer, batch) for peer in cohort.members or (cohort,)]).mean(0)
