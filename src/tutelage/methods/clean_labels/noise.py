"""The noise matrix, and the distribution of each sample's true class under it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

ROUNDS = 10
"""How often the noise matrix is improved."""

SHARES = 11
"""How many shares of a symmetric noise matrix are compared, from 0 to 1."""

SMALLEST = 1e-9
"""What probabilities are raised to before a logarithm or a division."""


def true_class_posterior(probabilities: Tensor, matrix: Tensor, labels: Tensor) -> Tensor:
    """The distribution of each sample's true class.

        P(k | x, y) = q[k]^(1/t) T[k, y] / sum_j q[j]^(1/t) T[j, y],   with q such that q T = p

    The temperature t is the one that makes the labels most probable, see ``label_likelihood``. This is the forward
    correction of Patrini et al. 2017, arXiv 1609.03683 [from memory], with t as the only parameter; the rest is ours.
    Networks that learnt wrong labels have too flat a q, which trusts the labels too much.

    Args:
        probabilities: p, (N, C) float64.
        matrix: T, (C, C) float64, rows sum to 1.
        labels: y, (N,) int64.

    Returns:
        (N, C) float64, rows sum to 1; the label itself where no class explains it.
    """
    given = matrix[:, labels].T
    posterior = _sharpened_classes(probabilities, matrix, labels) * given
    explained = posterior.sum(1, keepdim=True) > SMALLEST
    return torch.where(explained, normalised(posterior), F.one_hot(labels, len(matrix)).double())


def label_likelihood(probabilities: Tensor, matrix: Tensor, labels: Tensor) -> float:
    """The log-likelihood of all labels, sum over samples of log sum_k q[k]^(1/t) T[k, y] / sum_k q[k]^(1/t).

    q and t are those of ``true_class_posterior``. A noise matrix that explains the labels leaves certain, sharp
    distributions over classes; with a false one they have to remain flat.
    """
    given = matrix[:, labels].T
    likelihood = (_sharpened_classes(probabilities, matrix, labels) * given).sum(1)
    return float(likelihood.clamp_min(1e-300).log().sum())


def _sharpened_classes(probabilities: Tensor, matrix: Tensor, labels: Tensor) -> Tensor:
    """q^(1/t) / sum q^(1/t), (N, C) float64, with the temperature that makes the labels most probable."""
    given = matrix[:, labels].T
    return _tempered(true_classes(probabilities, matrix), lambda q: (q * given).sum(1))


def normalised(values: Tensor) -> Tensor:
    """Rows divided by their sums, (N, C)."""
    return values / values.sum(1, keepdim=True).clamp_min(SMALLEST)


def calibrated(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return p^(1/T) / sum p^(1/T) with the temperature T whose cross-entropy with the labels is smallest.

    Args:
        probabilities: p, (N, C), of networks that were not trained with these samples.
        labels: (N,) int64.

    Returns:
        (N, C) float64.
    """
    return _tempered(probabilities.double(), lambda p: p.gather(1, labels[:, None]))


def _tempered(distributions: Tensor, likelihood: Callable[[Tensor], Tensor]) -> Tensor:
    """Distributions p^(1/t) / sum p^(1/t), (N, C), with the t whose mean log-likelihood is largest."""
    from scipy.optimize import minimize_scalar

    logits = distributions.clamp_min(SMALLEST).log()

    def loss(log_t: float) -> float:
        return -float(likelihood((logits / math.exp(log_t)).softmax(1)).clamp_min(1e-300).log().mean())

    fitted = minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded")
    return (logits / math.exp(float(fitted.x))).softmax(1)


def noise_matrix(probabilities: Tensor, labels: Tensor, rounds: int = ROUNDS) -> Tensor:
    """Estimate the noise matrix T: by the confident joint, then by expectation maximisation.

    A sample is counted for the true class k if p[k] is at least the mean of p[k] over the samples labelled k; of
    several such classes, for the most probable one. The counts of true class and label, scaled to the number of each
    label, are the confident joint of Northcutt, Jiang, Chuang 2021, arXiv 1911.00068 [from memory]. It has too many
    wrong labels where networks are weak; rounds of expectation maximisation improve it (ours):

        T[k, y] <- sum over samples labelled y of P(k | x, y), divided by its sum over y

    Args:
        probabilities: p, (N, C), calibrated for the given labels.
        labels: (N,) int64.
        rounds: the number of rounds.

    Returns:
        (C, C) float64, rows sum to 1.
    """
    classes = probabilities.shape[1]
    given = F.one_hot(labels, classes).double()
    threshold = (given * probabilities).sum(0) / given.sum(0)  # NaN for a class without labels, which no sample reaches
    confident = probabilities.where(probabilities >= threshold, 0.0)
    counted = F.one_hot(confident.argmax(1), classes).double() * (confident.amax(1, keepdim=True) > 0)
    joint = counted.T @ given
    matrix = _rows_of_one(joint / joint.sum(0).clamp_min(1) * given.sum(0))
    for _ in range(rounds):
        matrix = _rows_of_one(true_class_posterior(probabilities, matrix, labels).T @ given)
    return matrix


def _rows_of_one(counts: Tensor) -> Tensor:
    """Rows divided by their sums; a row without counts is that of a class without noise."""
    totals = counts.sum(1, keepdim=True)
    return torch.where(totals > SMALLEST, counts / totals.clamp_min(SMALLEST), torch.eye(len(counts)).double())


def symmetric_share(probabilities: Tensor, matrix: Tensor, labels: Tensor) -> float:
    """The share of symmetric noise by Akaike's criterion: how far to shrink the estimated noise matrix.

    Networks confuse similar classes, and in an estimated noise matrix these errors look like noise between them. The
    share s is the one that maximises

        label_likelihood of (1 - s) T + s T_symmetric,   minus (1 - s) times the number of free entries of T,

    since shrinking by s leaves 1 - s of the free entries as effective parameters. Noise of one direction changes the
    likelihood far more than that, confusion does not.

    Args:
        probabilities: (N, C) float64, calibrated for the given labels.
        matrix: T, from ``noise_matrix``.
        labels: (N,) int64.
    """
    classes = len({*labels.tolist()})
    shares = [step / (SHARES - 1) for step in range(SHARES)]

    def criterion(share: float) -> float:
        likelihood = label_likelihood(probabilities, shrunk(matrix, labels, share), labels)
        return likelihood - (1 - share) * classes * (classes - 1)

    return max(shares, key=criterion)


def shrunk(matrix: Tensor, labels: Tensor, share: float) -> Tensor:
    """(1 - share) T + share T_symmetric, (C, C) float64.

    T_symmetric has the mean noise rate of T, spread equally over all other classes. Classes that no label names are
    left as they are.
    """
    named = labels.bincount(minlength=len(matrix)) > 0
    correct = matrix.diagonal()[named].mean()
    other = (1 - correct) / max(int(named.sum()) - 1, 1)
    same = torch.eye(len(matrix), dtype=torch.bool)
    symmetric = torch.full_like(matrix, float(other)).masked_fill(same, float(correct))
    return torch.where(named[:, None] & named[None], (1 - share) * matrix + share * symmetric, matrix)


def true_classes(probabilities: Tensor, matrix: Tensor, iterations: int = 10) -> Tensor:
    """Return the distribution q over true classes for each sample such that q T is as close as possible to p.

    q <- q (p / (q T)) T^T raises the likelihood of p under q T in each iteration (expectation maximisation) and keeps q
    a distribution.

    Args:
        probabilities: p, (N, C) float64.
        matrix: T, (C, C) float64, rows sum to 1.
        iterations: how often q is updated, from p. Few iterations keep differences between small probabilities.

    Returns:
        (N, C) float64, rows sum to 1.
    """
    classes = probabilities.clone()
    for _ in range(iterations):
        classes *= (probabilities / (classes @ matrix).clamp_min(SMALLEST)) @ matrix.T
    return classes / classes.sum(1, keepdim=True).clamp_min(SMALLEST)
