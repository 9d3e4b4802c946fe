"""The loss of a network with several heads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.models.outputs import Outputs
from tutelage.terms import CrossEntropy, Term
from tutelage.terms.cross_entropy import cross_entropy


class HeadsCrossEntropy(Term):
    """The sum over heads s of CE(z_s, y), per sample (B,), in nats.

    It also reads the network's logits, which it does not use, so that the network is evaluated after each epoch.

    Args:
        heads: the roles of the heads' logits, (B, C) each.
    """

    reads_teacher = False

    def __init__(self, heads: Sequence[str]) -> None:
        super().__init__()
        self.heads = tuple(heads)
        self.roles = ("logits", *self.heads)

    def mask(self, batch: Batch | None) -> Tensor | None:
        """The samples with a label."""
        return CrossEntropy().mask(batch)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,) nats; 0 for a sample without a label."""
        targets = self.required(batch, "the batch, for its targets").targets
        return torch.stack([cross_entropy(student[head], targets) for head in self.heads]).sum(0)
