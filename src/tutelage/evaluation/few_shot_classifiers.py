"""Classifiers that are fitted to the support of each episode.

All functions accept any leading axes, such as E episodes: support (..., n, D), queries (..., Q, D), and the
class numbers 0 .. ways - 1 of the support (n,), which are the same in all episodes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_STEPS = 100  # of Newton's method, which converges in about ten

Classifier = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""Maps ``(support, targets, queries, ways)`` to the logits of the queries (..., Q, ways)."""


def nearest_mean(support: Tensor, targets: Tensor, queries: Tensor, ways: int) -> Tensor:
    """Return the negative squared distance of each query to the mean of each class: (..., Q, ways)."""
    member = F.one_hot(targets, ways).to(support)
    means = member.mT @ support / member.sum(0)[:, None]
    return -torch.cdist(queries, means, compute_mode="donot_use_mm_for_euclid_dist").square()


def logistic_regression(
    support: Tensor, targets: Tensor, queries: Tensor, ways: int, strength: float = 100.0
) -> Tensor:
    """Return logits of the linear classifier that minimises strength x (sum of cross-entropies) + ||W||^2 / 2.

    The objective is that of scikit-learn's ``LogisticRegression(C=strength)``, minimised for all episodes at once in
    float64 by Newton's method with step halving, in the span of the support, which contains the optimal weights.

    Args:
        support, targets, queries, ways: as for every ``Classifier``.
        strength: C. The default is large because the authors' classifier has almost no regularisation.

    Returns:
        (..., Q, ways).
    """
    basis = torch.linalg.qr(support.double().mT).Q
    points, query_points = _with_one(support.double() @ basis), _with_one(queries.double() @ basis)
    labels = F.one_hot(targets, ways).to(points)
    contrasts = _contrasts(ways).to(points)
    penalty = torch.ones(points.shape[-1], 1).to(points)
    penalty[-1] = 1e-8  # a very small penalty of the bias keeps the minimum finite
    weights = points.new_zeros(*points.shape[:-2], points.shape[-1], ways - 1)

    def objective(weights: Tensor) -> Tensor:
        losses = -(labels * (points @ weights @ contrasts.mT).log_softmax(-1)).sum((-2, -1))
        return strength * losses + (penalty * weights.square()).sum((-2, -1)) / 2

    value = objective(weights)
    for _ in range(MOST_STEPS):
        p = (points @ weights @ contrasts.mT).softmax(-1)
        gradient = strength * points.mT @ ((p - labels) @ contrasts) + penalty * weights
        if gradient.abs().max() < 1e-8 * strength:
            break
        step = _newton_step(points, p, contrasts, strength, penalty, gradient)
        new = objective(weights - step)
        while (worse := new > value + 1e-12 * value.abs()).any():
            step = step.where(~worse[..., None, None], step / 2)
            new = objective(weights - step)
        weights, value = weights - step, new
    return query_points @ weights @ contrasts.mT


def _newton_step(
    points: Tensor, p: Tensor, contrasts: Tensor, strength: float, penalty: Tensor, gradient: Tensor
) -> Tensor:
    """Return H^-1 g in the shape of the gradient (..., d, ways - 1); unknowns are ordered by contrast."""
    size, columns = gradient.shape[-2:]
    spread = contrasts.mT @ (torch.diag_embed(p) - p[..., :, None] * p[..., None, :]) @ contrasts
    weighted = strength * spread.flatten(-2).mT[..., None] * points[..., None, :, :]  # (..., (ways - 1)^2, n, d)
    blocks = points.mT[..., None, :, :] @ weighted
    blocks = blocks.view(*blocks.shape[:-3], columns, columns, size, size)
    curvature = blocks.transpose(-3, -2).flatten(-2).flatten(-3, -2)
    hessian = curvature + torch.diag_embed(penalty[:, 0].repeat(columns))
    flat = gradient.mT.flatten(-2)
    factor, failed = torch.linalg.cholesky_ex(hessian)
    if bool(failed.any()):  # only by rounding errors: the Hessian is positive definite
        step = torch.linalg.solve(hessian, flat)
    else:
        step = torch.cholesky_solve(flat[..., None], factor)[..., 0]
    unknowns: Tensor = step.view(*step.shape[:-1], columns, size).mT
    return unknowns


def _contrasts(ways: int) -> Tensor:
    """Return an orthonormal basis of the vectors whose sum is 0: (ways, ways - 1) float64.

    The logits at the minimum sum to 0, because a constant added to all classes changes only the penalty.
    """
    centred = torch.eye(ways, dtype=torch.float64) - 1 / ways
    basis: Tensor = torch.linalg.svd(centred).U
    return basis[:, : ways - 1]


def adam_regression(
    support: Tensor,
    targets: Tensor,
    queries: Tensor,
    ways: int,
    *,
    steps: int = 1000,
    rate: float = 1e-3,
    decay: float = 5e-6,
) -> Tensor:
    """Return logits of the linear classifier trained as the authors do, with full-batch Adam and early stopping.

    Unlike the authors' random initial weights, the weights start at 0. All computations are in float64, because Adam
    would turn rounding errors in a gradient of 0 into full steps. Episodes are independent of each other.

    Returns:
        (..., Q, ways).
    """
    points = _with_one(support.double())
    labels = F.one_hot(targets, ways).to(points)
    weights = points.new_zeros(*points.shape[:-2], points.shape[-1], ways)
    optimiser = torch.optim.Adam([weights], lr=rate, weight_decay=decay)
    for _ in range(steps):
        weights.grad = points.mT @ ((points @ weights).softmax(-1) - labels) / len(targets)
        optimiser.step()
    return _with_one(queries.double()) @ weights


def _with_one(vectors: Tensor) -> Tensor:
    """Append a constant feature of 1, whose weights are the bias."""
    return torch.cat([vectors, vectors.new_ones(*vectors.shape[:-1], 1)], -1)
