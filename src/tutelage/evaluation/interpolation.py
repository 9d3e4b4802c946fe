"""Features of an episode, interpolated over a graph of all its samples.

Hu, Gripon, Pateux, "Graph-Based Interpolation of Feature Vectors for Accurate Few-Shot Classification", ICPR 2020,
arXiv 2001.09849; constants of the authors' code, yhu01/transfer-sgc.

All functions take E episodes at once, or any other leading axes: support (..., n, D) and queries (..., Q, D). None of
them but ``purity`` takes the class of a sample.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tutelage.terms.unit import unit

NEIGHBOURS = 10  # the authors' k


def most_neighbours(samples: int, ways: int) -> int:
    """How many other samples of its class a sample has on average in an episode: s + q - 1, and at least 1.

    With more neighbours than that the graph must join different classes. It is known without any query's class.
    """
    return max(samples // ways - 1, 1)


def neighbour_graph(vectors: Tensor, neighbours: int = NEIGHBOURS) -> Tensor:
    """The similarities S of samples: cosines of their vectors, where one is among the nearest of the other, else 0.

    Args:
        vectors: (..., N, D), raw: neither centred nor normalised.
        neighbours: k; 0 keeps all pairs.

    Returns:
        (..., N, N), symmetric, at least 0, with a diagonal of 0. Negative cosines are 0, as the degrees of the graph
        must not be negative; the authors' features are behind a ReLU and have none.
    """
    directions = unit(vectors)
    cosines = (directions @ directions.mT).clamp(min=0)
    samples = cosines.shape[-1]
    itself = torch.eye(samples, dtype=torch.bool, device=cosines.device)
    if neighbours and neighbours < samples - 1:
        nearest = cosines.masked_fill(itself, -1.0).topk(neighbours, -1).indices
        near = torch.zeros_like(cosines, dtype=torch.bool).scatter(-1, nearest, True)
        cosines = cosines.where(near | near.mT, 0.0)
    return cosines.masked_fill(itself, 0.0)


def diffusion(similarity: Tensor, alpha: float = 0.5, kappa: int = 3) -> Tensor:
    """E = (alpha I + D^(-1/2) S D^(-1/2))^kappa, D the diagonal of the sums of rows: (..., N, N).

    A sample without a neighbour is only scaled, by alpha^kappa: its row and column of the normalised S are 0.

    Args:
        similarity: S, (..., N, N), symmetric and at least 0.
        alpha: how much of itself a sample keeps in each step.
        kappa: the number of steps, at least 1.
    """
    degrees = similarity.sum(-1)
    scale = degrees.where(degrees > 0, torch.inf).rsqrt()
    step = scale[..., :, None] * similarity * scale[..., None, :]
    operator: Tensor = torch.linalg.matrix_power(step + alpha * torch.eye(step.shape[-1]).to(step), kappa)
    return operator


def prepared(support: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """Each less its own mean, at length 1. A single query is not centred, of which nothing would be left.

    The mean of the queries comes near to that of the classes only where the classes have about as many queries each.
    """
    centred = queries - queries.mean(-2, keepdim=True) if queries.shape[-2] > 1 else queries
    return unit(support - support.mean(-2, keepdim=True)), unit(centred)


def prepared_alone(support: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """Both less the mean of the support, at length 1: no query depends on the others.

    The authors' script for one query centres the support alone. That loses much [measured: 1-shot logistic regression
    on the pixels of digits has 60 % then, and 74 % so].
    """
    centre = support.mean(-2, keepdim=True)
    return unit(support - centre), unit(queries - centre)


def purity(similarity: Tensor, targets: Tensor) -> Tensor:
    """The share of a graph's weight that joins samples of one class: (..., N, N) and (N,) to (...), in [0, 1].

    NaN for a graph without edges. Where it is low, interpolation over the graph is expected to hurt.
    """
    within = similarity * (targets[:, None] == targets)
    return within.sum((-2, -1)) / similarity.sum((-2, -1))


def interpolated(
    vectors: tuple[Tensor, Tensor], similarity: Tensor, alpha: float = 0.5, kappa: int = 3
) -> tuple[Tensor, Tensor]:
    """Support and queries, diffused over the graph of both: (..., n, D) and (..., Q, D).

    Args:
        vectors: support and queries, from ``prepared``.
        similarity: (..., n + Q, n + Q), from ``neighbour_graph`` of both as they were before.
        alpha, kappa: as in ``diffusion``.
    """
    both = diffusion(similarity, alpha, kappa) @ torch.cat(vectors, -2)
    shots = vectors[0].shape[-2]
    return both[..., :shots, :], both[..., shots:, :]
