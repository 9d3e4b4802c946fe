"""The losses of a dynamic multi-path network besides the label loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.methods.dmnn.gates import straight_through
from tutelage.models.outputs import Outputs
from tutelage.terms import CrossEntropy, Term
from tutelage.terms.cross_entropy import cross_entropy


def executed_share(gates: Tensor, costs: Tensor) -> Tensor:
    """sum_n c_n g_n / sum_n c_n per sample: (B, N) gates and (N,) costs to (B,), in [0, 1]."""
    return gates @ (costs / costs.sum()).to(gates)


class RateLoss(Term):
    """(r - t)^2, (), with r the executed share averaged over the batch.

    The mean is over the batch before the square, so that easy samples may use fewer paths than others.

    Args:
        costs: the cost of each path, in the order of the gates.
        target: t, in [0, 1].
        sampled: r is that of the sampled gates; otherwise that of the gates without noise, which are used in eval
            mode, with the straight-through gradient of temperature 1.
    """

    reads_labels = False
    costs: Tensor
    reads_teacher = False

    def __init__(self, costs: Sequence[int], target: float, *, sampled: bool) -> None:
        super().__init__()
        self.target, self.sampled = target, sampled
        self.roles = ("gates" if sampled else "gate_logits",)
        self.register_buffer("costs", torch.tensor(costs, dtype=torch.float32), persistent=False)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(), without unit."""
        values = student[self.roles[0]]
        gates = values if self.sampled else straight_through(values, 1.0)
        return (executed_share(gates, self.costs).mean() - self.target).square()


class CategoryLoss(Term):
    """The mean over blocks l of CE(A_l h_l, category of y), per sample (B,), in nats.

    h_l is the state of block l's controller, and A_l a linear layer of this term, which is not saved with the student.

    Args:
        blocks: their number.
        groups: the category of each class, as numbers from 0.
    """

    groups: Tensor
    reads_teacher = False

    def __init__(self, blocks: int, groups: Sequence[int]) -> None:
        super().__init__()
        self.roles, self.blocks = ("states",), blocks
        self.register_buffer("groups", torch.tensor(groups), persistent=False)
        self.categories = max(groups) + 1
        self.classifiers = nn.ModuleList()

    def mask(self, batch: Batch | None) -> Tensor | None:
        """The samples with a label."""
        return CrossEntropy().mask(batch)

    def build(self, student: Outputs, teacher: Outputs | None) -> None:
        """Create the linear layers."""
        size = student["states"].shape[1] // self.blocks
        self.classifiers = nn.ModuleList(nn.Linear(size, self.categories) for _ in range(self.blocks))

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,) nats; 0 for a sample without a label."""
        targets = self.category(self.required(batch, "the batch, for its targets").targets)
        states = student["states"].chunk(self.blocks, 1)
        losses = [
            cross_entropy(classifier(state), targets)
            for classifier, state in zip(self.classifiers, states, strict=True)
        ]
        return torch.stack(losses).mean(0)

    def category(self, targets: Tensor) -> Tensor:
        """(B,) class numbers, or (B, C) soft labels, to those of categories; -1 remains -1."""
        if not targets.is_floating_point():
            return self.groups[targets.clamp(min=0)].where(targets >= 0, targets)
        sums = targets.new_zeros(len(targets), self.categories)
        return sums.index_add(1, self.groups, targets)
