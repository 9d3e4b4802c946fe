"""Relational knowledge distillation (RKD): Park, Kim, Lu, Cho 2019, arXiv 1904.05068."""

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

MAX_ANGLES = 2**24
"""The largest number of angles that are compared: all N^3 of them up to a batch of 256."""


def _range(embeddings: Tensor) -> Tensor:
    """The largest power of two not above the widest range of (N, D) embeddings along an axis, ()."""
    return scale_of(embeddings.amax(0) - embeddings.amin(0))


class _Distances(torch.autograd.Function):
    """Euclidean distances of (N, D) to (M, D), divided by a scale before squaring: (N, M).

    It differs from ``cdist`` of the quotients only in the order in which gradients are summed.
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
    """psi_D, the Euclidean distances of (N, D) embeddings divided by their mean: (N, N).

    The mean is over the distances that are not 0, and gradients flow through it.
    """
    distances: Tensor = _Distances.apply(embeddings, embeddings, _range(embeddings))  # type: ignore[no-untyped-call]
    mean = distances.sum() / (distances > 0).sum().clamp(min=1)
    return distances / mean.where(mean > 0, 1.0)


@full_precision
def distance_relations(student: Tensor, teacher: Tensor) -> Tensor:
    """RKD's distance loss L_D: the mean over all N^2 pairs of Huber(psi_D(s_i, s_j), psi_D(t_i, t_j)), delta = 1.

    Pairs of a sample with itself count, as in the authors' code, so that this is (N - 1)/N of the mean over the others.

    Args:
        student, teacher: embeddings (N, ...), flattened per sample, of any widths. No gradient reaches the teacher's.

    Returns:
        (), without unit, invariant to translation, rotation and scaling of either side.
    """
    check_samples(student, teacher)
    embeddings, target = (e.flatten(1) for e in (student, teacher.detach()))
    return F.smooth_l1_loss(relative_distances(embeddings), relative_distances(target))


@full_precision
def cosines(embeddings: Tensor, vertices: Tensor) -> Tensor:
    """psi_A, the cosine of the angle i-j-k at each vertex j: (V, N, N), from (N, D) embeddings and V vertices.

    The direction between two samples closer than about 1e-6 of the widest range of the embeddings along an axis is
    undefined; its cosines are 0 and have no gradient.
    """
    directions = unit((embeddings - embeddings[vertices].unsqueeze(1)) / _range(embeddings))
    return directions @ directions.transpose(1, 2)


@full_precision
def angle_relations(student: Tensor, teacher: Tensor, max_angles: int = MAX_ANGLES) -> Tensor:
    """RKD's angle loss L_A: the mean over all N^3 triplets of Huber(psi_A(s_i, s_j, s_k), psi_A(t_i, t_j, t_k)).

    delta is 1. Degenerate triplets count with a cosine of 0, as in the authors' code. If N^3 is above ``max_angles``,
    a random sample of the vertices j is used, which has the same expectation.

    Args:
        student, teacher: as in ``distance_relations``.
        max_angles: the number of angles that may be compared, which bounds the memory; not in the paper.

    Returns:
        (), without unit, invariant to translation, rotation and scaling of either side.
    """
    check_samples(student, teacher)
    embeddings, target = (e.flatten(1) for e in (student, teacher.detach()))
    samples = len(embeddings)
    vertices = torch.arange(samples, device=embeddings.device)
    if samples**3 > max_angles:
        vertices = torch.randperm(samples, device=embeddings.device)[: max(1, max_angles // samples**2)]
    return F.smooth_l1_loss(cosines(embeddings, vertices), cosines(target, vertices))


class DistanceRelations(Term):
    """``distance_relations`` of the embeddings, the inputs of the classifiers: one value ()."""

    reads_labels = False
    roles = ("embedding",)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(), without unit."""
        return distance_relations(student["embedding"], self.required(teacher)["embedding"])


class AngleRelations(Term):
    """``angle_relations`` of the embeddings, the inputs of the classifiers: one value ()."""

    reads_labels = False
    roles = ("embedding",)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(), without unit."""
        return angle_relations(student["embedding"], self.required(teacher)["embedding"])
