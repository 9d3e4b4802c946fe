"""Linear heads on the embedding, for classes and for rotations, that are trained with a backbone and discarded."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.models.outputs import Outputs
from tutelage.terms.cross_entropy import cross_entropy
from tutelage.terms.term import Term

TURNS = 4  # rotations by 0, 90, 180 and 270 degrees


class Head(Term):
    """A linear layer on the embedding (B, D), created at the first ``build`` and trained with the learner.

    If two learners share a head, one after the other, the second continues with the weights of the first.

    Args:
        size: outputs of the layer.
    """

    roles = ("embedding",)
    head: nn.Linear | None
    reads_teacher = False

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.head = None

    def build(self, student: Outputs, teacher: Outputs | None) -> None:
        """Create the layer, if it does not exist."""
        if self.head is None:
            self.head = nn.Linear(student["embedding"].shape[1], self.size)

    def logits(self, student: Outputs) -> Tensor:
        """(B, size)."""
        if self.head is None:
            raise RuntimeError("a head is built before it is used")
        logits: Tensor = self.head(student["embedding"])
        return logits


class BaseClasses(Head):
    """Cross-entropy over the classes that are trained on, per sample (B,).

    Args:
        base: (K,) int64, their numbers among the ``classes`` of the data, sorted. Other labels count as no label.
        classes: the number of classes of the data.
    """

    base: Tensor
    outputs_by_label: Tensor

    def __init__(self, base: Tensor, classes: int) -> None:
        super().__init__(len(base))
        outputs_by_label = torch.full((classes + 1,), -1)  # the last entry is that of the label -1
        outputs_by_label[base] = torch.arange(len(base))
        self.register_buffer("base", base)
        self.register_buffer("outputs_by_label", outputs_by_label)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,) nats; for soft labels (B, C), the columns of the base classes are used."""
        targets = self.required(batch, "the batch, for its labels").targets
        targets = targets[:, self.base] if targets.is_floating_point() else self.outputs_by_label[targets]
        return cross_entropy(self.logits(student), targets)


class Rotation(Head):
    """Cross-entropy of the rotation of each image of a ``Rotated`` batch, per sample (4 n,)."""

    reads_labels = False

    def __init__(self) -> None:
        super().__init__(TURNS)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(4 n,) nats; the batch holds n images in four rotations, one rotation after the other."""
        logits = self.logits(student)
        turns = torch.arange(TURNS, device=logits.device).repeat_interleave(len(logits) // TURNS)
        return cross_entropy(logits, turns)
