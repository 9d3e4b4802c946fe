"""Neighbours pulled together: Chen, Dutton, Ramachandra, Wu, Vatsavai 2020, arXiv 2004.09665."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tutelage.data.batch import UNLABELLED, Batch
from tutelage.models.outputs import Outputs
from tutelage.terms.precision import full_precision
from tutelage.terms.targets import checked_labels
from tutelage.terms.term import Term


@full_precision
def mean_squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """d_ij = ||a_i - b_j||^2 / D: (n, D) and (m, D) to (n, m), by matrix products, which need no (n, m, D)."""
    centre = b.detach().sum(0) / max(len(b), 1)  # moving both changes no distance, and leaves less to be rounded
    a, b = a - centre, b - centre
    squares = a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * a @ b.T
    return squares.clamp(min=0) / a.shape[1]


@full_precision
def local_clustering(a: Tensor, b: Tensor, threshold: float | Tensor) -> Tensor:
    """LC(A, B) = sum_ij m_ij d_ij exp(-d_ij / tau) / sum_ij m_ij, with m_ij = 1 where d_ij <= tau and 0 elsewhere.

    d is the mean squared distance of the features. The pull of a pair, exp(-d / tau) (1 - d / tau), is largest for
    the closest and 0 at d = tau. Where nobody has a neighbour the value is 0: the authors' code divides by 0 there.

    Args:
        a, b: features (n, ...) and (m, ...), flattened per sample; gradients reach both.
        threshold: tau, in the unit of the features squared.

    Returns:
        (), in that unit too.
    """
    distances = mean_squared_distances(a.flatten(1), b.flatten(1))
    return _pull(distances, threshold, torch.ones_like(distances, dtype=torch.bool))


def _pull(distances: Tensor, threshold: float | Tensor, pairs: Tensor) -> Tensor:
    near = ~(distances > threshold) & pairs  # a NaN is near, so that it stays to be seen
    pulled = (distances * (-distances / threshold).exp()).where(near, 0.0)
    return pulled.sum() / near.sum().clamp(min=1)


class LocalClustering(Term):
    """LC(f_l, f_u) + LC(f_u, f_u) of the embeddings of samples with a label and without: one value ().

    Pairs in the second part count in both orders, and with themselves in the denominator, as in the authors' code.
    In a batch where every sample has a label each of them counts as both; that is ours.

    Args:
        threshold: tau; ``None`` takes, in each batch anew, the quantile of the distances between different samples
            without a label. That is ours too, and keeps no state: the published numbers are of one network's scale.
        quantile: which, in (0, 1].
    """

    reads_labels = False
    roles = ("embedding",)

    def __init__(self, threshold: float | None = None, quantile: float = 0.1) -> None:
        super().__init__()
        if threshold is not None and not 0 < threshold < math.inf:
            raise ValueError(f"the threshold must be a finite number above 0, got {threshold}")
        if not 0 < quantile <= 1:
            raise ValueError(f"the quantile must lie in (0, 1], got {quantile}")
        self.threshold, self.quantile = threshold, quantile

    @property
    def teacher_roles(self) -> tuple[str, ...]:
        """It reads nothing of a teacher."""
        return ()

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(), in the unit of the features squared."""
        if batch is None:
            raise ValueError("LocalClustering needs the batch, for its targets")
        features = student["embedding"].flatten(1)
        hard = checked_labels(batch.targets)
        # Masks, and no parts of the batch: to make parts is to wait for the device to say how large they are.
        labelled = hard != UNLABELLED
        unlabelled = ~labelled | labelled.all()
        distances, within = mean_squared_distances(features, features), unlabelled[:, None] & unlabelled
        threshold = _quantile(distances, within, self.quantile) if self.threshold is None else self.threshold
        across = labelled[:, None] & unlabelled
        return _pull(distances, threshold, across) + _pull(distances, threshold, within)


@torch.no_grad()
def _quantile(distances: Tensor, pairs: Tensor, share: float) -> Tensor:
    """The distance within which this share of these pairs lie, those of a sample with itself apart: (1,), above 0.

    Args:
        distances: (n, n) of all samples.
        pairs: (n, n) bool, all pairs of some of them, at least of one.
    """
    count = pairs.diagonal().sum()
    found = distances.masked_fill(torch.eye(len(pairs), dtype=torch.bool, device=pairs.device), 0)
    found = found.masked_fill(~pairs, float("inf")).flatten().sort().values
    place = count - 1 + (share * (count * (count - 1))).ceil().long()  # the samples themselves come first
    return found.gather(0, place[None]).clamp(min=torch.finfo(found.dtype).tiny)
