"""The triplet loss between two networks: Georgescu, Ionescu 2020, arXiv 2008.01003."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tutelage.data.batch import UNLABELLED, Batch
from tutelage.models.outputs import Outputs, at_least_float32
from tutelage.terms.precision import full_precision
from tutelage.terms.targets import checked_labels
from tutelage.terms.term import Term
from tutelage.terms.triplets import squared_distances, triplet_loss
from tutelage.terms.unit import unit


@full_precision
def cross_triplets(
    student: Tensor, teacher: Tensor, targets: Tensor, margin: float = 0.3
) -> tuple[Tensor, Tensor, Tensor]:
    """Batch-hard triplets whose positives are the teacher's: [m + ||s_a - t_p||^2 - ||s_a - s_n||^2]_+ for each anchor.

    Each sample is the anchor a once, as the student's embedding s_a. p is the sample of a's class, a itself among them,
    whose embedding by the *teacher* is farthest from s_a; n the sample of another class whose embedding by the
    *student* is nearest. The gradient reaches s_a and s_n, and no teacher. Where all embeddings are the same the loss
    is m.

    Args:
        student: (B, D), of the inputs as the student sees them.
        teacher: (B, D).
        targets: (B,) int64, ``-1`` for samples without a label, which are in no triplet; of soft labels the largest.
        margin: m, in the unit of squared distances.

    Returns:
        (B,) losses, 0 for anchors in no triplet; and the places (B,) of the positives and the negatives, which mean
        nothing for those anchors.
    """
    targets, teacher = checked_labels(targets), teacher.detach()
    labelled = targets != UNLABELLED
    known = labelled[:, None] & labelled
    same = targets[:, None] == targets
    with torch.no_grad():
        to_teacher = torch.cdist(student, teacher).masked_fill(~(known & same), -1.0)
        to_student = torch.cdist(student, student).masked_fill(~known | same, math.inf)
        positive, negative = to_teacher.argmax(1), to_student.argmin(1)
        complete = (known & ~same).any(1)
    near, far = squared_distances(student, teacher[positive]), squared_distances(student, student[negative])
    return triplet_loss(near, far, "relative", margin).where(complete, 0.0), positive, negative


class CrossTriplets(Term):
    """``cross_triplets`` of the embeddings at length 1, per sample (B,).

    Embeddings of two widths are compared after a linear map of the student's to the width of the teacher's, which is
    trained with the student and is no part of it.

    Args:
        margin: m, between squared distances of at most 4.
    """

    roles = ("embedding",)

    def __init__(self, margin: float = 0.3) -> None:
        super().__init__()
        if not 0 < margin < 4:
            raise ValueError(
                f"the margin lies between squared distances of vectors of length 1, in (0, 4), got {margin}"
            )
        self.margin = margin
        self.projection: nn.Module | None = None

    def build(self, student: Outputs, teacher: Outputs | None) -> None:
        """Make the map between two widths."""
        if self.projection is not None or teacher is None:
            return
        own, other = (at_least_float32(outputs["embedding"]).flatten(1) for outputs in (student, teacher))
        same = own.shape[1] == other.shape[1]
        self.projection = nn.Identity() if same else nn.Linear(own.shape[1], other.shape[1], bias=False).to(own)

    def compared(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of both, (B, D_s) and (B, D_t), as they are compared: (B, D_t), of length 1.

        Raises:
            ValueError: ``build`` was not called.
        """
        if self.projection is None:
            raise ValueError("CrossTriplets needs build(student, teacher) once before it is used")
        return (
            unit(self.projection(at_least_float32(student).flatten(1))),
            unit(at_least_float32(teacher).flatten(1)),
        )

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,), in units of squared distance."""
        if teacher is None or batch is None:
            raise ValueError("CrossTriplets needs a teacher's outputs, and the batch for its targets")
        own, other = self.compared(student["embedding"], teacher["embedding"])
        return cross_triplets(own, other, batch.targets, self.margin)[0]
