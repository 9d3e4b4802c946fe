"""The local clustering loss: Chen, Dutton, Ramachandra, Wu, Vatsavai 2020, arXiv 2004.09665."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.models.outputs import Outputs
from tutelage.terms.precision import full_precision
from tutelage.terms.term import Term


@full_precision
def mean_squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """d_ij = ||a_i - b_j||^2 / D: (n, D) and (m, D) to (n, m), by matrix products, without an (n, m, D) tensor."""
    centre = b.detach().sum(0) / max(len(b), 1)  # a translation changes no distance and reduces rounding errors
    a, b = a - centre, b - centre
    squares = a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * a @ b.T
    return squares.clamp(min=0) / a.shape[1]


@full_precision
def local_clustering(a: Tensor, b: Tensor, threshold: float | Tensor) -> Tensor:
    """LC(A, B) = sum_ij m_ij d_ij exp(-d_ij / tau) / sum_ij m_ij, with m_ij = 1 if d_ij <= tau, else 0.

    d is the mean squared distance of the features. The derivative by d, exp(-d / tau) (1 - d / tau), is largest for the
    closest pairs and 0 at d = tau. Without any neighbours the value is 0; the authors' code divides by 0.

    Args:
        a, b: features (n, ...) and (m, ...), flattened per sample; gradients reach both.
        threshold: tau, in squared units of the features.

    Returns:
        (), in the same unit.
    """
    return _pull(mean_squared_distances(a.flatten(1), b.flatten(1)), threshold)


def _pull(distances: Tensor, threshold: float | Tensor) -> Tensor:
    neighbours = ~(distances > threshold)  # also for NaN, which stays visible
    values = (distances * (-distances / threshold).exp()).where(neighbours, 0.0)
    return values.sum() / neighbours.sum().clamp(min=1)


class LocalClustering(Term):
    """LC(f_l, f_u) + LC(f_u, f_u) of the embeddings of two batches, with (l) and without (u) labels: one value ().

    It is meant for ``.between(unlabelled, labelled)``, where the student's own embeddings of the labelled batch take
    the teacher's place and gradients flow into both. In the second summand pairs count in both orders, and each sample
    with itself in the denominator, as in the authors' code.

    Args:
        threshold: tau. ``None`` uses, in each batch, a quantile of the distances between different samples without a
            label (our choice, since the published values depend on the scale of one network's features).
        quantile: the quantile, in (0, 1].
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

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(), in squared units of the features."""
        unlabelled = student["embedding"].flatten(1)
        labelled = self.required(teacher, "two batches of outputs", "use it with .between(...)")["embedding"].flatten(1)
        within = mean_squared_distances(unlabelled, unlabelled)
        threshold = _quantile(within, self.quantile) if self.threshold is None else self.threshold
        return _pull(mean_squared_distances(labelled, unlabelled), threshold) + _pull(within, threshold)


@torch.no_grad()
def _quantile(distances: Tensor, share: float) -> Tensor:
    """The quantile of the distances (n, n) between different samples, () and above 0; the smallest number for n < 2."""
    count = len(distances)
    if count < 2:
        return distances.new_tensor(torch.finfo(distances.dtype).tiny)
    different = distances.flatten()[1:].view(count - 1, count + 1)[:, :-1]  # each row ends on the diagonal
    values = different.flatten().sort().values
    return values[math.ceil(share * len(values)) - 1].clamp(min=torch.finfo(values.dtype).tiny)
