"""Linear heads on the embedding that are trained with a backbone and not kept: classes, and rotations."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.models.outputs import Outputs
from tutelage.terms.cross_entropy import cross_entropy
from tutelage.terms.term import Term

TURNS = 4  # rotations by 0, 90, 180 and 270 degrees


class Head(Term):
    """A linear layer on the embedding (B, D), made at the first ``build`` and trained with the learner.

    Two learners in turn may share a head: the second one continues with the weights that the first one left.

    Args:
        size: outputs of the layer.
    """

    roles = ("embedding",)
    head: nn.Linear | None

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.head = None

    @property
    def teacher_roles(self) -> tuple[str, ...]:
        """It reads nothing of a teacher."""
        return ()

    def build(self, student: Outputs, teacher: Outputs | None) -> None:
        """Make the layer, unless it is there."""
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
        classes: how many classes the data has.
    """

    base: Tensor
    places: Tensor

    def __init__(self, base: Tensor, classes: int) -> None:
        super().__init__(len(base))
        places = torch.full((classes + 1,), -1)  # the last one is of the label -1
        places[base] = torch.arange(len(base))
        self.register_buffer("base", base)
        self.register_buffer("places", places)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,) nats; of soft labels (B, C) the columns of the base classes are read."""
        if batch is None:
            raise ValueError("BaseClasses needs the batch, for its labels")
        soft = batch.targets.is_floating_point()
        targets = batch.targets[:, self.base] if soft else self.places[batch.targets]
        return cross_entropy(self.logits(student), targets)


class Rotation(Head):
    """Cross-entropy of which of the four rotations of ``Rotated`` each image of its batch has, per sample (4 n,)."""

    reads_labels = False

    def __init__(self) -> None:
        super().__init__(TURNS)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(4 n,) nats: the batch has n images four times, rotation by rotation."""
        logits = self.logits(student)
        turns = torch.arange(TURNS, device=logits.device).repeat_interleave(len(logits) // TURNS)
        return cross_entropy(logits, turns)
