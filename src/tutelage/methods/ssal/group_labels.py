"""The loss of a classifier of groups of classes."""

from __future__ import annotations

import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.models.outputs import Outputs
from tutelage.terms.cross_entropy import cross_entropy
from tutelage.terms.term import Term


def group_targets(targets: Tensor, groups: Tensor) -> Tensor:
    """The targets of the groups: the group of each label, or for soft labels the sum over each group's classes.

    Args:
        targets: (B,) int64, -1 for no label, or soft labels (B, K).
        groups: (K,) int64, the group of each class, numbered from 0.

    Returns:
        (B,) int64, -1 for no label, or (B, G).
    """
    if targets.is_floating_point():
        membership = groups[:, None] == torch.arange(len(groups), device=groups.device)
        return targets @ membership.to(targets)
    return torch.where(targets >= 0, groups.index_select(0, targets.clamp_min(0)), targets)


class GroupCrossEntropy(Term):
    """Cross-entropy of an output of the student with the groups of the labels, per sample (B,).

    Args:
        role: the student's role, (B, G) logits of the groups.
        groups: (K,) int64, the group of each class, numbered from 0 to G - 1.
    """

    teacher_roles = ()
    groups: Tensor

    def __init__(self, role: str, groups: Tensor) -> None:
        super().__init__()
        self.roles, self.count = (role,), int(groups.max()) + 1
        self.register_buffer("groups", groups, persistent=False)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,) nats; 0 for a sample without a label."""
        targets = group_targets(self.required(batch, "the batch, for its targets").targets, self.groups)
        return cross_entropy(student[self.roles[0]], targets[:, : self.count] if targets.ndim == 2 else targets)
