"""The weight of each client for each sample: Ma, Yonetani, Iqbal 2020, arXiv 2008.07948."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tutelage.errors import TutelageError

SMALLEST_SUM = 1e-8


def shares(confidences: Tensor) -> Tensor:
    """w_i = g_i / sum_j g_j; 1 / N for a sample on which the sum is below 1e-8.

    Args:
        confidences: g >= 0, (N, S) for N clients and S samples.

    Returns:
        (N, S); the sum over clients is 1.
    """
    total = confidences.sum(0, keepdim=True)
    even = torch.full_like(confidences, 1 / len(confidences))
    return torch.where(total < SMALLEST_SUM, even, confidences / total.clamp_min(SMALLEST_SUM))


def odds_shares(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """w = softmax over clients of logit(g) / T: shares of g / (1 - g), the estimated density ratio, at T = 1.

    Args:
        logits: log g / (1 - g), (N, S).
        temperature: T > 0.

    Returns:
        (N, S); the sum over clients is 1.
    """
    return (logits / temperature).softmax(0)


def certainty(probabilities: Tensor) -> Tensor:
    """1 - H(p) / log C, (...) in [0, 1]: the certainty of distributions p (..., C), C >= 2."""
    entropy = -torch.xlogy(probabilities, probabilities).sum(-1)
    return (1 - entropy / math.log(probabilities.shape[-1])).clamp(0, 1)


def aggregate(probabilities: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean sum_i w_i(x) f_i(x) of the clients' predictions.

    Args:
        probabilities: f, (N, S, C).
        weights: w, (N, S).

    Returns:
        (S, C).

    Raises:
        TutelageError: the shapes do not fit.
    """
    if probabilities.shape[:-1] != weights.shape:
        raise TutelageError(
            f"weights of shape {tuple(weights.shape)} do not fit predictions of shape {tuple(probabilities.shape)}; "
            "give one weight for each client and sample"
        )
    return (weights.unsqueeze(-1) * probabilities).sum(0)
