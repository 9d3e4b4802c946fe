"""Clustering by minimum-cost multicut: the costs of cutting pairs, and a heuristic that minimises them.

Clusters are (N,) int64 numbers 0, 1, ...; costs are (N, N). All computations are in float64.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.data.batch import UNLABELLED
from tutelage.evaluation.clustering import renumbered

Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]

TOLERANCE = 1e-9  # relative to the largest cost; a smaller gain is rounding error


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
    return renumbered(improve_partition(matrix, contract_edges(matrix)))


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
