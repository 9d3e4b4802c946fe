"""Peers' predictions as targets: Zhang, Xiang, Hospedales, Lu 2018, arXiv 1706.00384."""

from __future__ import annotations

import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.models.outputs import Outputs
from tutelage.terms.soft_targets import SoftTargets, soft_targets
from tutelage.terms.term import Term


def mimicry_loss(student_logits: Tensor, *peer_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """1/(K-1) sum over peers l of T^2 KL(softmax(z_l / T) || softmax(z / T)) per sample.

    Args:
        student_logits: z, (B, C), or of tokens or maps as in ``soft_targets``.
        peer_logits: z_l of each of the K - 1 peers, of the same shape. No gradient reaches them.
        temperature: T > 0; the paper has 1.

    Returns:
        (B,) nats times T^2.
    """
    return torch.stack([soft_targets(student_logits, peer, temperature) for peer in peer_logits]).mean(0)


class Mimicry(Term):
    """1/(K-1) sum_{l != k} T^2 KL(p_l || p_k) per sample (B,): the mean over peers, each peer being a target.

    Differs from ``SoftTargets`` on the same peers, which matches the mean of their probabilities (the paper's DML_e,
    reported worse, since averaging sharpens the target).
    """

    reads_labels = False

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.each = SoftTargets(temperature)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,) nats times T^2."""
        if teacher is None:
            raise ValueError("Mimicry needs the peers' outputs")
        peers = teacher.members or (teacher,)
        return torch.stack([self.each(student, peer, batch) for peer in peers]).mean(0)
