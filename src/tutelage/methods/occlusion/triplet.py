"""The triplet loss between two networks: Georgescu, Ionescu 2020, arXiv 2008.01003."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tutelage.data.batch import UNLABELLED, Batch
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs, at_least_float32
from tutelage.terms.precision import full_precision
from tutelage.terms.targets import checked_labels
from tutelage.terms.term import BUILD_FIRST, Term
from tutelage.terms.triplets import squared_distances, triplet_loss
from tutelage.terms.unit import unit


@full_precision
def cross_triplets(
    student: Tensor, teacher: Tensor, targets: Tensor, margin: float = 0.3
) -> tuple[Tensor, Tensor, Tensor]:
    """Batch-hard triplets with the teacher's positives: [m + ||s_a - t_p||^2 - ||s_a - s_n||^2]_+ for each anchor a.

    The anchor is the student's embedding s_a of each sample. p is the sample of the same class, possibly a itself,
    whose *teacher* embedding is farthest from s_a, and n the sample of another class whose *student* embedding is
    nearest. The gradient reaches s_a and s_n but not the teacher. If all embeddings are equal, the loss is m.

    Args:
        student: the student's embeddings, (B, D).
        teacher: the teacher's embeddings, (B, D).
        targets: (B,) int64, ``-1`` for samples without a label, which are in no triplet; or soft labels, whose largest
            class counts.
        margin: m, in units of squared distance.

    Returns:
        The losses (B,), 0 for anchors in no triplet; and the indices (B,) of the positives and of the negatives, which
        are arbitrary for those anchors.
    """
    targets, teacher = checked_labels(targets), teacher.detach()
    is_labelled = targets != UNLABELLED
    labelled_pairs = is_labelled[:, None] & is_labelled
    same_class = targets[:, None] == targets
    with torch.no_grad():
        to_teacher = torch.cdist(student, teacher).masked_fill(~(labelled_pairs & same_class), -1.0)
        to_student = torch.cdist(student, student).masked_fill(~labelled_pairs | same_class, math.inf)
        positives, negatives = to_teacher.argmax(1), to_student.argmin(1)
        complete = (labelled_pairs & ~same_class).any(1)
    d_ap, d_an = squared_distances(student, teacher[positives]), squared_distances(student, student[negatives])
    return triplet_loss(d_ap, d_an, "relative", margin).where(complete, 0.0), positives, negatives


class CrossTriplets(Term):
    """``cross_triplets`` of the embeddings, scaled to length 1, per sample (B,).

    If the embeddings differ in width, a linear layer maps the student's to the width of the teacher's; it is trained
    with the student but is not part of it.

    Args:
        margin: m, for squared distances of at most 4.
    """

    roles = ("embedding",)

    def __init__(self, margin: float = 0.3) -> None:
        super().__init__()
        if not 0 < margin < 4:
            raise TutelageError(f"the margin between squared distances of unit vectors must be in (0, 4), got {margin}")
        self.margin = margin
        self.projection: nn.Module | None = None

    def build(self, student: Outputs, teacher: Outputs | None) -> None:
        """Create the linear layer, if the widths differ."""
        if self.projection is not None or teacher is None:
            return
        embeddings, targets = (at_least_float32(outputs["embedding"]).flatten(1) for outputs in (student, teacher))
        width, target_width = embeddings.shape[1], targets.shape[1]
        equal = width == target_width
        self.projection = nn.Identity() if equal else nn.Linear(width, target_width, bias=False).to(embeddings)

    def comparable(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Project and scale embeddings (B, D_s) and (B, D_t) to vectors (B, D_t) of length 1.

        Raises:
            TutelageError: ``build`` was not called.
        """
        projection = self.required(self.projection, "a projection", BUILD_FIRST)
        return (
            unit(projection(at_least_float32(student).flatten(1))),
            unit(at_least_float32(teacher).flatten(1)),
        )

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,), in units of squared distance."""
        embeddings, targets = self.comparable(student["embedding"], self.required(teacher)["embedding"])
        labels = self.required(batch, "the batch, for its targets").targets
        return cross_triplets(embeddings, targets, labels, self.margin)[0]
