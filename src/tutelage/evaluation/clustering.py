"""Clustering of embeddings by k-means, and the agreement of clusters with classes.

Clusters are (N,) int64 numbers 0, 1, ...; labels are (N,) int64 class numbers, ``-1`` for samples without a label. Such
samples are excluded from every comparison; a comparison of no samples is NaN. Embeddings are (N, D); all computations
are in float64.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.data.batch import UNLABELLED

Floats = NDArray[np.float64]


def k_means(embeddings: Tensor, clusters: int, *, restarts: int = 10, seed: int = 0) -> Tensor:
    """Return the best of several k-means clusterings with k-means++ initialisation: (N,).

    If there are fewer distinct embeddings than ``clusters``, the result has fewer clusters.

    Args:
        embeddings: (N, D), finite.
        clusters: k.
        restarts: number of initialisations; the result depends strongly on the initialisation.
        seed: equal seeds give equal clusters.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    points = embeddings.detach().double().cpu().numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct embeddings than clusters
        assignment = KMeans(min(clusters, len(points)), n_init=restarts, random_state=seed).fit_predict(points)
    return renumbered(assignment)


# --- correlation clustering


def nmi(labels: Tensor, clusters: Tensor) -> float:
    """Return the normalised mutual information I(labels; clusters) / ((H(labels) + H(clusters)) / 2), in [0, 1]."""
    from sklearn.metrics import normalized_mutual_info_score

    return _compared(normalized_mutual_info_score, labels, clusters)


def ari(labels: Tensor, clusters: Tensor) -> float:
    """Return the adjusted Rand index: 1 for equal partitions, 0 expected by chance, at least -0.5."""
    from sklearn.metrics import adjusted_rand_score

    return _compared(adjusted_rand_score, labels, clusters)


def matched_accuracy(labels: Tensor, clusters: Tensor) -> float:
    """Return the share of samples whose cluster is matched with their class, in [0, 1].

    The matching is the best one-to-one matching (Kuhn 1955, the Hungarian method). If there are more clusters than
    classes, some clusters have no class, and all their samples count as wrong.
    """
    from scipy.optimize import linear_sum_assignment

    counts = _contingency(labels, clusters)
    rows, columns = linear_sum_assignment(counts, maximize=True)
    return float(counts[rows, columns].sum() / counts.sum()) if counts.size else float("nan")


def variation_of_information(labels: Tensor, clusters: Tensor) -> tuple[float, float]:
    """Return H(clusters | labels), high if classes are split, and H(labels | clusters), high if they are merged.

    Both are in bits; their sum is the variation of information (Meilă 2007). Both are 0 for equal partitions.
    """
    counts = _contingency(labels, clusters)
    if not counts.size:
        return float("nan"), float("nan")
    joint = counts / counts.sum()
    both, classes, groups = (_entropy(p) for p in (joint, joint.sum(1), joint.sum(0)))
    return max(both - classes, 0.0), max(both - groups, 0.0)


def _entropy(probabilities: Floats) -> float:
    positive = probabilities[probabilities > 0]
    return float(-(positive * np.log2(positive)).sum())


def _contingency(labels: Tensor, clusters: Tensor) -> Floats:
    """Count the samples of each class in each cluster: (classes, clusters), of those that occur."""
    labels, clusters = _labelled(labels, clusters)
    rows, row = torch.unique(labels, return_inverse=True)
    columns, column = torch.unique(clusters, return_inverse=True)
    counts = torch.bincount(row * len(columns) + column, minlength=len(rows) * len(columns))
    return counts.view(len(rows), len(columns)).double().numpy()


def _compared(score: Callable[[Any, Any], float], labels: Tensor, clusters: Tensor) -> float:
    labels, clusters = _labelled(labels, clusters)
    return float(score(labels.numpy(), clusters.numpy())) if len(labels) else float("nan")


def _labelled(labels: Tensor, clusters: Tensor) -> tuple[Tensor, Tensor]:
    if labels.shape != clusters.shape:
        raise ValueError(f"labels {tuple(labels.shape)} and clusters {tuple(clusters.shape)} must have the same shape")
    labels, clusters = labels.cpu(), clusters.cpu()
    labelled = labels != UNLABELLED
    return labels[labelled], clusters[labelled]


def renumbered(clusters: NDArray[Any]) -> Tensor:
    """Renumber clusters 0, 1, ... in the order in which they first occur."""
    _, first, indices = np.unique(clusters, return_index=True, return_inverse=True)
    return torch.from_numpy(first.argsort().argsort()[indices].astype(np.int64))
