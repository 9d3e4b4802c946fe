"""Relations among the samples of a batch (RKD): Park, Kim, Lu, Cho 2019, arXiv 1904.05068."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.models.outputs import Outputs
from tutelage.terms.precision import full_precision, scale_of
from tutelage.terms.term import Term
from tutelage.terms.unit import unit

MOST_ANGLES = 2**24
"""How many angles are compared at most: all N^3 of them up to a batch of 256."""


def _unscaled(embeddings: Tensor) -> Tensor:
    """(N, D) embeddings whose widest range along an axis lies in [1, 2), so that no square over- or underflows."""
    embeddings = embeddings / scale_of(embeddings)
    return embeddings / scale_of(embeddings.amax(0) - embeddings.amin(0))


@full_precision
def relative_distances(embeddings: Tensor) -> Tensor:
    """psi_D: Euclidean distances of (N, D) embeddings over their mean, (N, N).

    The mean runs over the distances that are not 0 and carries its gradient.
    """
    # Not by the Gram matrix, which loses small distances; the gradient of a distance of 0 is 0.
    distances = torch.cdist(embeddings, embeddings, compute_mode="donot_use_mm_for_euclid_dist")
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
    ours, theirs = (_unscaled(e.flatten(1)) for e in (student, teacher.detach()))
    return F.smooth_l1_loss(relative_distances(ours), relative_distances(theirs))


@full_precision
def cosines(embeddings: Tensor, vertices: Tensor) -> Tensor:
    """psi_A: the cosine of the angle i-j-k at each vertex j, (V, N, N), from (N, D) embeddings and V vertices.

    Two samples closer than 1e-6 have no direction; their cosines are 0 and have no gradient. ``angle_relations`` gives
    embeddings whose widest range is about 1.
    """
    directions = unit(embeddings - embeddings[vertices].unsqueeze(1))
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
    ours, theirs = (_unscaled(e.flatten(1)) for e in (student, teacher.detach()))
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
