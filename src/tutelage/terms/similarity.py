"""Similarities within a batch: Tung, Mori 2019, arXiv 1907.09682."""

from __future__ import annotations

from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.models.outputs import Outputs
from tutelage.terms.precision import full_precision, scale_of
from tutelage.terms.shapes import check_samples
from tutelage.terms.term import Term
from tutelage.terms.unit import unit

REFERENCE_BATCH = 64  # of the runs that the published weight is from


@full_precision
def similarities(features: Tensor) -> Tensor:
    """G: the rows of Q Q^T at length 1 each, (b, b); Q is (b, ...) features, flattened per sample.

    G does not depend on the features' scale, which is taken out first so that no product of them over- or underflows.
    """
    flat = features.flatten(1)
    flat = flat / scale_of(flat)
    return unit(flat @ flat.T, smallest=1e-12)


@full_precision
def similarity_preserving(student: Tensor, teacher: Tensor) -> Tensor:
    """L_SP = 1/b^2 ||G_T - G_S||_F^2, the paper's equation 4 for one layer.

    Args:
        student, teacher: (b, ...), alike in b alone: maps, tokens or embeddings. No gradient reaches the teacher's.

    Returns:
        (), no unit; unchanged when either side is scaled as a whole. A property of the batch as a whole: single samples
        cannot be weighted.
    """
    check_samples(student, teacher)
    difference: Tensor = similarities(teacher.detach()) - similarities(student)
    return difference.square().mean()


class SimilarityPreserving(Term):
    """``similarity_preserving`` of a layer, times b / 64: one value ().

    The rows of G have length 1, so that L_SP shrinks as 1/b. With the factor, the squared distance of a row has the
    same weight whatever the batch size; at 64 it is 1.

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
        """(), no unit."""
        if teacher is None:
            raise ValueError("SimilarityPreserving needs a teacher's outputs")
        ours = student[self.roles[0]]
        return similarity_preserving(ours, teacher[self.teacher_role]) * (len(ours) / REFERENCE_BATCH)
