"""Relations among the samples of a batch (RKD): Park, Kim, Lu, Cho 2019, arXiv 1904.05068."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tutelage.data.batch import Batch
from tutelage.models.outputs import Outputs
from tutelage.terms.precision import full_precision, scale_of
from tutelage.terms.shapes import check_samples
from tutelage.terms.term import Term
from tutelage.terms.unit import unit

MOST_ANGLES = 2**24
"""How many angles are compared at most: all N^3 of them up to a batch of 256."""


def _range(embeddings: Tensor) -> Tensor:
    """The power of two at or below the widest range of (N, D) embeddings along an axis, ()."""
    return scale_of(embeddings.amax(0) - embeddings.amin(0))


class _Distances(torch.autograd.Function):
    """Euclidean distances of (N, D) to (M, D), divided by a scale before any square is taken: (N, M).

    ``cdist`` of quotients would be the same but for the order in which gradients are added up.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
        # Not by the Gram matrix, which loses small distances; the gradient of a distance of 0 is 0.
        distances = torch.cdist(a / scale, b / scale, compute_mode="donot_use_mm_for_euclid_dist")
        ctx.save_for_backward(a, b, scale, distances)
        return distances

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        a, b, scale, distances = ctx.saved_tensors
        a, b = a / scale, b / scale
        of_a = torch.ops.aten._cdist_backward(grad.contiguous(), a, b, 2.0, distances)
        of_b = torch.ops.aten._cdist_backward(grad.mT.contiguous(), b, a, 2.0, distances.mT.contiguous())
        return of_a / scale, of_b / scale, None


@full_precision
def relative_distances(embeddings: Tensor) -> Tensor:
    """psi_D: Euclidean distances of (N, D) embeddings over their mean, (N, N).

    The mean runs over the distances that are not 0 and carries its gradient.
    """
    distances: Tensor = _Distances.apply(embeddings, embeddings, _range(embeddings))  # type: ignore[no-untyped-call]
    mean = distances.sum() / (distances > 0).sum().clamp(min=1)
    return distances / mean.where(mean > 0, 1.0)


@full_precision
def distance_relations(student: Tensor, teacher: Tensor) -> Tensor:
    """L_D: the mean over all N^2 pairs of Huber(psi_D(s_i, s_j), psi_D(t_i, t_j)), delta = 1.

    Pairs of a sample with itself count, as in the authors' code: this is (N - 1)/N of the mean over true pairs.

    Args:
        student, teacher: embeddings (N, ...), flattened per sample; of any two widths. No gradient reaches the
            teacher's.

    Returns:
        (), no unit; unchanged when either side is moved, turned or scaled as a whole.
    """
    check_samples(student, teacher)
    ours, theirs = (e.flatten(1) for e in (student, teacher.detach()))
    return F.smooth_l1_loss(relative_distances(ours), relative_distances(theirs))


@full_precision
def cosines(embeddings: Tensor, vertices: Tensor) -> Tensor:
    """psi_A: the cosine of the angle i-j-k at each vertex j, (V, N, N), from (N, D) embeddings and V vertices.

    Two samples closer than about 1e-6 of the widest range of the embeddings along an axis have no direction; their
    cosines are 0 and have no gradient.
    """
    directions = unit((embeddings - embeddings[vertices].unsqueeze(1)) / _range(embeddings))
    return directions @ directions.transpose(1, 2)


@full_precision
def angle_relations(student: Tensor, teacher: Tensor, most: int = MOST_ANGLES) -> Tensor:
    """L_A: the mean over all N^3 triplets of Huber(psi_A(s_i, s_j, s_k), psi_A(t_i, t_j, t_k)), delta = 1.

    Degenerate triplets count with their cosine of 0, as in the authors' code. Where N^3 is above ``most``, a random
    part of the vertices j stands for all of them, with the same expectation.

    Args:
        student, teacher: as in ``distance_relations``.
        most: the number of angles that may be compared at once; ours, since memory grows with it.

    Returns:
        (), no unit; unchanged when either side is moved, turned or scaled as a whole.
    """
    check_samples(student, teacher)
    ours, theirs = (e.flatten(1) for e in (student, teacher.detach()))
    samples = len(ours)
    vertices = torch.arange(samples, device=ours.device)
    if samples**3 > most:
        vertices = torch.randperm(samples, device=ours.device)[: max(1, most // samples**2)]
    return F.smooth_l1_loss(cosines(ours, vertices), cosines(theirs, vertices))


class DistanceRelations(Term):
    """``distance_relations`` of the embeddings, what the classifiers are given: one value ()."""

    reads_labels = False
    roles = ("embedding",)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(), no unit."""
        if teacher is None:
            raise ValueError("DistanceRelations needs a teacher's outputs")
        return distance_relations(student["embedding"], teacher["embedding"])


class AngleRelations(Term):
    """``angle_relations`` of the embeddings, what the classifiers are given: one value ()."""

    reads_labels = False
    roles = ("embedding",)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(), no unit."""
        if teacher is None:
            raise ValueError("AngleRelations needs a teacher's outputs")
        return angle_relations(student["embedding"], teacher["embedding"])
