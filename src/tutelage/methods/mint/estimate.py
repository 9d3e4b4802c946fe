"""Conditional geometric mutual information of groups of activations, estimated by a minimum spanning tree."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

MIN_SAMPLES = 30  # for the three parts
_CHUNK = 2**25  # the number of distances in memory at once


def dependence(children: Sequence[Tensor], parents: Sequence[Tensor], generator: torch.Generator) -> Tensor:
    """rho(X_j; Y_i | Z_i) of each group of child activations X_j and each group of parent activations Y_i.

    Z_i are the activations of all parent groups but i. The samples are divided at random into three parts of m rows:

        J  (x, y, z)
        A  (x, y', z), where y' belongs to the sample of part B whose z is the nearest to this z

    so that A imitates p(x | z) p(y | z) p(z). With R the number of edges of the Euclidean minimum spanning tree of both
    that join a row of J to one of A (the statistic of Friedman and Rafsky),

        rho = 1 - R / m

    which is about 0 if X and Y are independent given Z, and tends to 1 the more they depend on each other. Negative
    values are noise around 0; callers clamp them.

    Args:
        children: X_j, each (n, d_j), float.
        parents: Y_i, each (n, d_i), of the same n samples, at least 30.
        generator: of the division into parts, and of the choice between nearest samples at equal distances.

    Returns:
        (children, parents), float64, at most 1 - 1 / m.
    """
    samples = len(parents[0])
    size = samples // 3
    order = torch.randperm(samples, generator=generator)[: 3 * size]
    joint, moved, donors = order.view(3, size)
    rows = torch.cat([joint, moved])
    tables = [parent.double() for parent in parents]
    pooled = []
    for number, table in enumerate(tables):
        others = torch.cat([table.new_zeros(samples, 0), *tables[:number], *tables[number + 1 :]], 1)
        partner = donors[nearest(others[moved], others[donors], generator)]
        pooled.append(torch.cat([torch.cat([table[joint], table[partner]]), others[rows]], 1))
    per_chunk = max(1, _CHUNK // (2 * size) ** 2)
    from_joint = torch.arange(2 * size) < size
    scores = []
    for start in range(0, len(children), per_chunk):
        chunk = children[start : start + per_chunk]
        within = torch.stack([squared_distances(child[rows].double()).float() for child in chunk])
        trees = [spanning_tree(within, squared_distances(points).float()) for points in pooled]
        joining = torch.stack([(from_joint[one] != from_joint[other]).sum(1) for one, other in trees], 1)
        scores.append(1 - joining.double() / size)
    return torch.cat(scores)


def nearest(queries: Tensor, candidates: Tensor, generator: torch.Generator) -> Tensor:
    """The index of the candidate nearest to each query, a random one of several: (q, d) and (c, d) to (q,) int64.

    Without dimensions all candidates are equally near.
    """
    distances = squared_distances(queries, candidates)
    ties = distances == distances.amin(1, keepdim=True)
    return (ties * (1 + torch.rand(ties.shape, generator=generator))).argmax(1)


def squared_distances(points: Tensor, others: Tensor | None = None) -> Tensor:
    """Squared Euclidean distances, (n, d) and (k, d) to (n, k); of the points to each other without ``others``."""
    others = points if others is None else others
    squares = points.square().sum(1)[:, None] + others.square().sum(1)
    return (squares - 2 * points @ others.T).clamp(min=0)


def spanning_tree(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The edges of the minimum spanning tree of each of K complete graphs, by Prim's algorithm.

    Equal and zero lengths are allowed: each tree has n - 1 edges.

    Args:
        first: (K, n, n) symmetric, which is added to
        second: (n, n) symmetric, the part of the lengths that all graphs have in common.

    Returns:
        The two nodes of each edge, two (K, n - 1) int64 tensors.
    """
    own, common = first.numpy(), second.numpy()
    graphs, nodes = own.shape[:2]
    graph = np.arange(graphs)
    new = np.zeros(graphs, np.int64)
    outside = np.ones((graphs, nodes), bool)
    length = np.full((graphs, nodes), np.inf, own.dtype)  # of the shortest edge from a node outside to the tree
    end = np.zeros((graphs, nodes), np.int64)  # of that edge, in the tree
    edges = np.empty((2, graphs, nodes - 1), np.int64)
    for number in range(nodes - 1):
        outside[graph, new] = False
        length[graph, new] = np.inf
        candidate = own[graph, new] + common[new]
        closer = (candidate < length) & outside
        np.copyto(length, candidate, where=closer)
        np.copyto(end, new[:, None], where=closer)
        new = length.argmin(1)
        edges[:, :, number] = end[graph, new], new
    return torch.from_numpy(edges[0]), torch.from_numpy(edges[1])
