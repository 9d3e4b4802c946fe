"""Binary cross-entropy of the nodes of a hierarchy that a label determines."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.data.hierarchy import Hierarchy
from tutelage.models.outputs import Outputs
from tutelage.terms.precision import full_precision
from tutelage.terms.targets import check_targets, labelled
from tutelage.terms.term import Term


def node_targets(possible: Tensor, below: Tensor, is_child: Tensor) -> tuple[Tensor, Tensor]:
    """Targets and mask of all nodes, (B, n) float32 of 0 and 1.

    The target is 1 for nodes above all possible classes: the node of the label and its ancestors. The mask is 1 for
    these, and for children of nodes strictly above the label that contain no possible class: the siblings of the label
    and of its ancestors. What is below the label is not in the mask.

    Args:
        possible: (B, C) of 0 and 1: the classes below the node of each label; none for no label.
        below: (n, C) of 0 and 1: the classes below each node.
        is_child: (n, n) of 0 and 1: row v marks the children of node v.
    """
    sizes = possible.sum(1, keepdim=True)
    shared = possible @ below.T
    above = ((shared == sizes) & (sizes > 0)).float()
    strictly_above = above * (below.sum(1) > sizes)
    siblings = (strictly_above @ is_child > 0) & (shared == 0)
    return above, above + siblings.float()


@full_precision
def node_cross_entropy(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """sum_v m_v BCE(sigmoid(z_v), t_v) per sample, (B,) nats; all arguments are (B, n)."""
    return (mask * F.binary_cross_entropy_with_logits(logits, targets.to(logits), reduction="none")).sum(1)


class NodeCrossEntropy(Term):
    """``node_cross_entropy`` of the student's node logits, per sample (B,); 0 for a sample without a label.

    The possible classes of a sample are those of non-zero probability in its label.

    Args:
        role: the output of node logits, (B, n).
        hierarchy: of n nodes.
    """

    below: Tensor
    is_child: Tensor
    reads_teacher = False

    def __init__(self, role: str, hierarchy: Hierarchy) -> None:
        super().__init__()
        self.roles = (role,)
        is_child = torch.zeros(len(hierarchy), len(hierarchy))
        for child, parents in enumerate(hierarchy.parents):
            is_child[list(parents), child] = 1
        self.register_buffer("below", hierarchy.below.float(), persistent=False)
        self.register_buffer("is_child", is_child, persistent=False)

    def mask(self, batch: Batch | None) -> Tensor | None:
        """The samples with a label."""
        return None if batch is None else labelled(batch.targets)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,) nats."""
        labels = self.required(batch, "the batch, for its targets").targets
        check_targets(labels, self.below.shape[1])
        if labels.is_floating_point():
            possible = (labels > 0).float()
        else:
            possible = F.one_hot(labels.clamp_min(0), self.below.shape[1]).float() * (labels >= 0)[:, None]
        with torch.autocast(possible.device.type, enabled=False):
            targets, mask = node_targets(possible, self.below, self.is_child)
        return node_cross_entropy(student[self.roles[0]], targets, mask)
