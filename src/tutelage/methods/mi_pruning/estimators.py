"""Scores of a feature by its dependence on the class: bounds of the mutual information, and the energy distance."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Literal

import torch
from torch import Tensor

from tutelage.errors import TutelageError

Bounds = Literal["upper", "lower", "mixed"]

SATURATION = 0.01  # of the entropy of the classes


def mutual_information(x: Tensor, labels: Tensor, variance: float, bounds: Bounds = "upper") -> float:
    """The estimate of I(X + N(0, variance I); Y) from pairwise distances (Kolchinsky, Tracey 2017), in nats.

        I = H(X) - sum_c n_c / n H(X | Y = c)
        H(X) = D/2 + D/2 ln(2 pi v) - 1/n sum_i ln 1/n sum_j exp(-||x_i - x_j||^2 / (k v)),   v the variance

    with k = 2 for the upper bound of the entropy and k = 8 for the lower one.

    Args:
        x: (n, D) samples.
        labels: (n,) classes.
        variance: v.
        bounds: "upper" or "lower" takes one bound for both entropies. "mixed" takes the upper one for the first and the
            lower one for the second, an upper bound of I.
    """
    squares = squared_distances(x)
    first, second = (2, 8) if bounds == "mixed" else (2, 2) if bounds == "upper" else (8, 8)
    total = _pairwise_term(squares, first * variance)
    for label in torch.unique(labels):
        rows = (labels == label).nonzero().squeeze(1)
        total -= len(rows) / len(x) * _pairwise_term(squares[rows][:, rows], second * variance)
    return total  # the other terms of the entropies are equal


def entropy(x: Tensor, variance: float, bound: Literal["upper", "lower"] = "upper") -> float:
    """A bound of the entropy of X + N(0, variance I) for samples (n, D), as in ``mutual_information``, in nats."""
    size = x.shape[1]
    constant = size / 2 + size / 2 * math.log(2 * math.pi * variance)
    return constant + _pairwise_term(squared_distances(x), (2 if bound == "upper" else 8) * variance)


def _pairwise_term(squares: Tensor, scale: float) -> float:
    """- mean_i ln mean_j exp(-d_ij / scale), for (n, n) squared distances."""
    return float(math.log(len(squares)) - (-squares / scale).logsumexp(1).mean())


def squared_distances(x: Tensor) -> Tensor:
    """||x_i - x_j||^2 of all pairs: (n, D) to (n, n), float64."""
    x = x.double()
    norms = x.square().sum(1)
    squares = (norms[:, None] + norms - 2 * x @ x.T).clamp_min_(0)
    return squares.fill_diagonal_(0)


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E||X - Y|| - E||X - X'|| - E||Y - Y'||, with means over all pairs, of samples (n, D) and (m, D)."""
    x, y = x.double(), y.double()
    return float(2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean())


def largest_energy_distance(x: Tensor, labels: Tensor) -> float:
    """The largest energy distance between the largest class (of equal ones the first) and another; 0 for one class.

    Args:
        x: (n, D) samples.
        labels: (n,) classes.
    """
    classes, counts = torch.unique(labels, return_counts=True)
    largest = classes[counts.argmax()]
    others = [label for label in classes if label != largest]
    return max((energy_distance(x[labels == largest], x[labels == label]) for label in others), default=0.0)


def class_entropy(labels: Tensor) -> float:
    """H(Y) of the frequencies of the classes (n,), in nats."""
    shares = torch.unique(labels, return_counts=True)[1].double() / len(labels)
    return float(-(shares * shares.log()).sum())


def standardised(x: Tensor) -> Tensor:
    """(n, D) with mean 0 and standard deviation 1 in each dimension, in float64; constant dimensions become 0."""
    centred = x.double() - x.double().mean(0)
    deviation = centred.square().mean(0).sqrt()
    constant = deviation <= 1e-9 * x.double().abs().amax(0)
    return torch.where(constant, torch.zeros_like(centred), centred / torch.where(constant, 1.0, deviation))


def median_variance(x: Tensor) -> float:
    """Half of the median squared distance between two of the samples (n, D); 1 if that is 0."""
    rows, columns = torch.triu_indices(len(x), len(x), 1)
    median = float(squared_distances(x)[rows, columns].median())
    return median / 2 if median > 0 else 1.0


def check_not_saturated(scores: Collection[float], of_classes: float) -> None:
    """Refuse estimates of mutual information that are all within 1 % of the entropy of the classes.

    If the noise is much smaller than all distances, every sample identifies itself, and the estimate is H(Y) for any
    feature, also for one that is independent of the class.

    Raises:
        TutelageError: they are.
    """
    if scores and all(score >= (1 - SATURATION) * of_classes for score in scores):
        raise TutelageError(
            f"the mutual information of every unit is within 1 % of the entropy of the classes, {of_classes:.3g} nats, "
            "so it says nothing about the units: the variance of the noise is too small for the distances of the "
            "features; use the median of the distances (--set variance=0) or a larger variance, and pooled features"
        )
