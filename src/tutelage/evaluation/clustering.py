"""Clustering of embeddings, by k-means and minimum-cost multicut, and agreement of clusters with classes.

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
Numbers = NDArray[np.int64]

TOLERANCE = 1e-9  # relative to the largest cost; a smaller gain is rounding error


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
    return _renumbered(assignment)


# --- correlation clustering


def pair_distances(embeddings: Tensor) -> Tensor:
    """The squared distances between all embeddings: (N, D) to (N, N) float64, with a diagonal of 0."""
    points = embeddings.detach().double().flatten(1)
    return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").square()


def cut_costs(distances: Tensor, slope: float = 1.0, offset: float = -2.0) -> Tensor:
    """c = log((1 - q) / q) = -(w d + b), where q = sigmoid(w d + b) is the probability of two clusters.

    Args:
        distances: (N, N), squared.
        slope, offset: w and b. Pairs whose distance is below -b / w attract each other. The default threshold, 2, is
            the mean of the margins of the absolute triplet loss, (1 + 3) / 2; ``fit_cut`` estimates w and b from data.

    Returns:
        (N, N) float64: the cost of cutting each pair, positive for pairs that attract each other.
    """
    return -(slope * distances.double() + offset)


def fit_cut(distances: Tensor, labels: Tensor) -> tuple[float, float]:
    """Fit w and b of ``cut_costs`` by logistic regression on all pairs of labelled samples.

    Args:
        distances: (N, N), squared, of samples other than those to be clustered.
        labels: (N,), with at least one pair of equal labels and one of different labels.
    """
    from sklearn.linear_model import LogisticRegression

    labelled = (labels != UNLABELLED).nonzero().squeeze(1).cpu()
    first, second = labelled[torch.combinations(torch.arange(len(labelled)))].T
    values = distances.cpu()[first, second].double()
    scale = float(values.mean()) or 1.0  # makes the regression independent of the scale of distances
    model = LogisticRegression(C=1e6, max_iter=1000)
    model.fit((values / scale)[:, None].numpy(), (labels.cpu()[first] != labels.cpu()[second]).numpy())
    return float(model.coef_[0, 0]) / scale, float(model.intercept_[0])


def multicut_objective(costs: Tensor, clusters: Tensor) -> float:
    """Return the summed cost of all pairs i < j in different clusters; lower is better.

    Args:
        costs: (N, N), symmetric.
        clusters: (N,).
    """
    return float(costs.double().triu(1)[clusters[:, None] != clusters].sum())


def multicut(costs: Tensor) -> Tensor:
    """Minimise ``multicut_objective`` heuristically, with the number of clusters free: (N,).

    Greedy additive edge contraction, then Kernighan-Lin with joins: Keuper, Levinkov, Bonneel, Lavoué, Brox, Andres,
    "Efficient Decomposition of Image and Mesh Graphs by Lifted Multicuts", ICCV 2015. The problem is NP-hard; the
    result is a local optimum of both. Time and memory grow at least with N^2, which limits N to a few thousand.

    Args:
        costs: (N, N), symmetric and finite; the diagonal is not read.
    """
    matrix = costs.detach().double().cpu().numpy().copy()
    np.fill_diagonal(matrix, 0.0)
    return _renumbered(improve_partition(matrix, contract_edges(matrix)))


def contract_edges(costs: Floats) -> Numbers:
    """Greedy additive edge contraction: join the two clusters of the largest summed cost while it is positive.

    Args:
        costs: (N, N), symmetric.

    Returns:
        (N,) cluster numbers.
    """
    costs = costs.copy()
    np.fill_diagonal(costs, -np.inf)
    clusters = np.arange(len(costs))
    # Each cluster's best partner replaces a heap of edges: in a complete graph a contraction changes N edges.
    best, partner = costs.max(1), costs.argmax(1)
    while best[a := int(best.argmax())] > 0:
        b = int(partner[a])
        clusters[clusters == b] = a
        costs[a] += costs[b]
        costs[:, a] = costs[a]
        costs[b] = costs[:, b] = -np.inf
        nearer = costs[a] >= best
        best[nearer], partner[nearer] = costs[a][nearer], a
        stale = ~nearer & ((partner == a) | (partner == b))
        stale[[a, b]] = True
        best[stale], partner[stale] = costs[stale].max(1), costs[stale].argmax(1)
    return clusters


def improve_partition(costs: Floats, clusters: Numbers) -> Numbers:
    """Kernighan-Lin with joins: move samples between two clusters or into a new one, or join two.

    Repeat until no such change lowers the objective. Pairs of clusters without an attracting edge between them are
    skipped: moving their samples into a new cluster is at least as good.

    Args:
        costs: (N, N), symmetric, with a diagonal of 0.
        clusters: (N,), the initial partition.

    Returns:
        (N,), a partition whose objective is not higher.
    """
    clusters = clusters.copy()
    least = TOLERANCE * float(np.abs(costs).max(initial=0.0))
    attracting = costs > 0
    changed = set(np.unique(clusters).tolist())
    while changed:
        updated: set[int] = set()
        for a, b in _neighbours(attracting, clusters):
            if a in changed or b in changed:
                updated |= _between(costs, clusters, a, b, least)
        for a in np.unique(clusters).tolist():
            if a in changed or a in updated:
                updated |= _between(costs, clusters, a, int(clusters.max()) + 1, least)
        changed = updated
    return clusters


def _neighbours(attracting: NDArray[np.bool_], clusters: Numbers) -> list[tuple[int, int]]:
    """Return the pairs of clusters with an attracting edge between them."""
    names, indices = np.unique(clusters, return_inverse=True)
    member = np.eye(len(names), dtype=np.float32)[indices]
    joined = np.triu(member.T @ (attracting.astype(np.float32) @ member), 1) > 0
    return [(int(names[i]), int(names[j])) for i, j in np.argwhere(joined)]


def _between(costs: Floats, clusters: Numbers, a: int, b: int, least: float) -> set[int]:
    """Apply the best sequence of moves between two clusters, in place, and return the changed clusters."""
    members = np.flatnonzero((clusters == a) | (clusters == b))
    if len(members) < 2:
        return set()
    within = costs[np.ix_(members, members)]
    side = np.where(clusters[members] == a, 1.0, -1.0)
    join = within[side > 0][:, side < 0].sum()
    order, gains = _moves(within, side)
    last = int(gains.argmax())
    if max(join, gains[last]) <= least:
        return set()
    if join > gains[last]:
        clusters[members] = a
    else:
        moved = order[: last + 1]
        clusters[members[moved]] = np.where(side[moved] > 0, b, a)
    return {a, b}


def _moves(costs: Floats, side: Floats) -> tuple[Numbers, Floats]:
    """Move each sample once to the other side, in each step the one with the largest gain.

    Args:
        costs: (n, n), symmetric, with a diagonal of 0.
        side: (n,), 1 or -1.

    Returns:
        The order of moves, (n,), and the total decrease of the objective after each move, (n,).
    """
    side = side.copy()
    gains = -side * (costs @ side)
    order, total = np.empty(len(side), np.int64), np.empty(len(side))
    for step in range(len(side)):
        best = int(gains.argmax())
        order[step], total[step] = best, gains[best]
        side[best] = -side[best]
        gains -= (2 * side[best]) * side * costs[best]
        gains[best] = -np.inf
    return order, total.cumsum()


# --- agreement of clusters with classes


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


def _renumbered(clusters: NDArray[Any]) -> Tensor:
    """Renumber clusters 0, 1, ... in the order in which they first occur."""
    _, first, indices = np.unique(clusters, return_index=True, return_inverse=True)
    return torch.from_numpy(first.argsort().argsort()[indices].astype(np.int64))
