"""Similarity-preserving distillation (SP): Tung, Mori 2019, arXiv 1907.09682."""

from __future__ import annotations

from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.models.outputs import Outputs
from tutelage.terms.precision import full_precision, scale_of
from tutelage.terms.shapes import check_samples
from tutelage.terms.term import Term
from tutelage.terms.unit import unit

REFERENCE_BATCH = 64  # the batch size for which the published weight was chosen


@full_precision
def similarities(features: Tensor) -> Tensor:
    """The similarity matrix G of a batch, (b, b): Q Q^T with each row scaled to length 1.

    G does not depend on the scale of the features, which is divided out first so that no product over- or underflows.

    Args:
        features: Q, (b, ...), flattened per sample.
    """
    flat = features.flatten(1)
    flat = flat / scale_of(flat)
    return unit(flat @ flat.T, smallest=1e-12)


@full_precision
def similarity_preserving(student: Tensor, teacher: Tensor) -> Tensor:
    """The similarity-preserving loss of one layer, L_SP = 1/b^2 ||G_T - G_S||_F^2: the paper's equation 4.

    Args:
        student, teacher: maps, tokens or embeddings (b, ...); only b must be equal. No gradient reaches the teacher's.

    Returns:
        (), without unit, independent of the scale of either side. It is one value for the whole batch: samples cannot
        be weighted.
    """
    check_samples(student, teacher)
    difference: Tensor = similarities(teacher.detach()) - similarities(student)
    return difference.square().mean()


class SimilarityPreserving(Term):
    """``similarity_preserving`` of a layer, times b / 64: one value ().

    The rows of G have length 1, so that L_SP is proportional to 1/b. The factor makes the weight of each row
    independent of the batch size; it is 1 for a batch of 64.

    Args:
        role: the student's layer.
        teacher_role: the teacher's.
    """

    reads_labels = False

    def __init__(self, role: str, teacher_role: str) -> None:
        super().__init__()
        self.roles, self.teacher_role = (role,), teacher_role

    @property
    def teacher_roles(self) -> tuple[str, ...]:
        """The teacher's layer."""
        return (self.teacher_role,)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(), without unit."""
        features, target = student[self.roles[0]], self.required(teacher)[self.teacher_role]
        return similarity_preserving(features, target) * (len(features) / REFERENCE_BATCH)
