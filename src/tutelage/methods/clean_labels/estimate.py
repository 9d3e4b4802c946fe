"""Which labels are probably wrong, by the evidence of networks that were trained on all labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.methods.clean_labels.evidence import Evidence

By = Literal["combined", "out_of_sample", "differences", "agreement", "posterior", "drpl"]

ROUNDS = 3
"""How often the noise matrix is improved."""

UNSUPPORTED = 2.0
"""The number of wrong labels of a class that hard samples with correct labels may seem to have."""

Repair = Literal["soften", "remove", "replace"]
"""What happens to labels before the student is trained, see ``clean_labels``."""

_SMALLEST = 1e-9


@dataclass(frozen=True)
class Verdict:
    """What is probably wrong.

    Attributes:
        wrong: (N,) float64, the probability that the label is wrong.
        suggested: (N,) int64, the most probable true class other than the label.
        soft_labels: (N, C) float64, P(k | x, y) for each class k, see ``softened``; rows sum to 1.
        support: by kind of evidence (N,) float32 in [0, 1]: how much it supports the label.
        noise_matrix: (C, C) float64, the estimated probability of each label (column) for samples of each true class
            (row).
        fold_matrices: (folds, C, C) float64, the same estimated from the samples of each fold.
    """

    wrong: Tensor
    suggested: Tensor
    soft_labels: Tensor
    support: Mapping[str, Tensor]
    noise_matrix: Tensor
    fold_matrices: Tensor


def judge(evidence: Evidence, labels: Tensor, by: By = "combined") -> Verdict:
    """Estimate for each label the probability that it is wrong.

    Each kind of evidence is a number in [0, 1] that is small for wrong labels:

    - out_of_sample: the probability of the label by the network that was trained without the sample;
    - differences: (d + 1) / 2, where d is P-DIFF's difference averaged over epochs and networks;
    - agreement: the mean probability of the label over all networks;
    - posterior: P(y | x, y) below, with the mean probabilities over all networks as p. It takes into account that some
      classes are confused more often than others;
    - drpl: 1 - P(noisy) of DRPL, if its phases were trained.

    The chosen one, or the mean rank of differences and posterior ("combined"), orders the labels. Probabilities p of
    the given labels and the noise matrix T give the probability of the true class k of a sample with the label y:

        P(k | x, y) = q[k] T[k, y] / sum_j q[j] T[j, y],   with q such that q T = p

    The probability that a label is wrong is 1 - P(y | x, y), the mean of three estimates, made monotone in the order by
    isotonic regression: with the calibrated out-of-sample probabilities as p, with the mean probabilities over all
    networks, and that of the ``softened`` labels. The first two doubt too few labels where networks learnt wrong ones;
    the third overlooks a few wrong labels among many correct ones.

    Args:
        evidence: of all networks.
        labels: y, (N,) int64 class numbers.
        by: the evidence that orders the labels.
    """
    from sklearn.isotonic import IsotonicRegression

    own = labels[:, None]
    support = {
        "out_of_sample": evidence.probabilities.gather(1, own).squeeze(1),
        "differences": (evidence.difference + 1) / 2,
        "agreement": evidence.votes.gather(1, own).squeeze(1),
    }
    probabilities = calibrated(evidence.probabilities, labels)
    matrix = noise_matrix(probabilities, labels)
    soft_labels = softened(probabilities, matrix, labels)
    by_votes, out_of_sample = (_posterior(p, matrix, labels) for p in (evidence.votes.double(), probabilities))
    support["posterior"] = by_votes.gather(1, own).squeeze(1).float()
    combined = _ranks(support["differences"]) + _ranks(support["posterior"])
    if evidence.noisy is not None:
        support["drpl"] = (1 - evidence.noisy).float()
    score = combined if by == "combined" else _ranks(support[by])  # close values fail in IsotonicRegression
    wrong = 1 - ((soft_labels + out_of_sample + by_votes) / 3).gather(1, own).squeeze(1)
    ordered = IsotonicRegression(increasing=False).fit_transform(score.numpy(), wrong.numpy())
    members = [evidence.fold == fold for fold in sorted({*evidence.fold.tolist()})]
    by_fold = [noise_matrix(probabilities[rows], labels[rows]) for rows in members]
    suggested = soft_labels.scatter(1, own, -1.0).argmax(1)
    wrong = torch.from_numpy(ordered).clamp(0, 1)
    return Verdict(wrong, suggested, soft_labels, support, matrix, torch.stack(by_fold))


def softened(probabilities: Tensor, matrix: Tensor, labels: Tensor) -> Tensor:
    """Soft labels: the distribution of each sample's true class, by networks that were not trained with it.

        P(k | x, y) = q[k]^(1/t) T[k, y] / sum_j q[j]^(1/t) T[j, y],   with q such that q T = p

    The temperature t is the one that makes the labels most probable: sum_k q[k]^(1/t) T[k, y], divided by
    sum_k q[k]^(1/t), is the probability of a label. This is the forward correction of Patrini et al. 2017,
    arXiv 1609.03683 [from memory], with t as the only parameter; the rest is ours. Networks that learnt wrong labels
    have too flat a q, which trusts the labels too much.

    The noise matrix is improved once with these distributions, where ``UNSUPPORTED`` wrong labels of each class do not
    count: hard samples with correct labels support a small probability of noise, which would soften their labels.

    Args:
        probabilities: p, (N, C) float64, calibrated for the given labels.
        matrix: T, (C, C) float64, rows sum to 1.
        labels: y, (N,) int64.

    Returns:
        (N, C) float64, rows sum to 1.
    """
    given = F.one_hot(labels, len(matrix)).double()
    counts = _sharpened_posterior(probabilities, matrix, labels).T @ given
    same = torch.eye(len(matrix)).bool()
    wrong = counts.masked_fill(same, 0).sum(1, keepdim=True).clamp_min(UNSUPPORTED)
    supported = _rows_of_one(counts.where(same, counts * (1 - UNSUPPORTED / wrong)))
    posterior = _sharpened_posterior(probabilities, supported, labels)
    totals = posterior.sum(1, keepdim=True)  # nearly 0 where no class explains the label
    return torch.where(totals > _SMALLEST, posterior / totals.clamp_min(_SMALLEST), given)


def _sharpened_posterior(probabilities: Tensor, matrix: Tensor, labels: Tensor) -> Tensor:
    """P(k | x, y) with the temperature that makes the labels most probable, (N, C) float64."""
    given = matrix[:, labels].T
    classes = true_classes(probabilities, matrix)
    posterior = _tempered(classes, lambda q: (q * given).sum(1)) * given
    return posterior / posterior.sum(1, keepdim=True).clamp_min(_SMALLEST)


def _posterior(probabilities: Tensor, matrix: Tensor, labels: Tensor, iterations: int = 10) -> Tensor:
    """P(k | x, y) for each class k, (N, C) float64."""
    posterior = true_classes(probabilities, matrix, iterations) * matrix[:, labels].T
    return posterior / posterior.sum(1, keepdim=True).clamp_min(_SMALLEST)


def _ranks(values: Tensor) -> Tensor:
    """The rank of each value, equal values sharing their mean rank, (N,) float64, exact multiples of 1/2."""
    from scipy.stats import rankdata

    return torch.from_numpy(rankdata(values.numpy()))


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

    logits = distributions.clamp_min(_SMALLEST).log()

    def loss(log_t: float) -> float:
        return -float(likelihood((logits / math.exp(log_t)).softmax(1)).clamp_min(1e-300).log().mean())

    fitted = minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded")
    return (logits / math.exp(float(fitted.x))).softmax(1)


def noise_matrix(probabilities: Tensor, labels: Tensor, rounds: int = ROUNDS) -> Tensor:
    """Estimate the noise matrix T: by the confident joint, then by expectation maximisation.

    A sample is counted for the true class k if p[k] is at least the mean of p[k] over the samples labelled k; of
    several such classes, for the most probable one. The counts of true class and label, scaled to the number of each
    label, are the confident joint of Northcutt, Jiang, Chuang 2021, arXiv 1911.00068 [from memory]. It has too many
    wrong labels where networks are weak; a few rounds improve it (ours):

        T[k, y] <- sum over samples labelled y of P(k | x, y), divided by its sum over y

    Args:
        probabilities: p, (N, C), calibrated for the given labels.
        labels: (N,) int64.
        rounds: the number of rounds. More of them make weak networks' errors self-fulfilling.

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
        matrix = _rows_of_one(_posterior(probabilities, matrix, labels, iterations=100).T @ given)
    return matrix


def _rows_of_one(counts: Tensor) -> Tensor:
    """Rows divided by their sums; a row without counts is that of a class without noise."""
    totals = counts.sum(1, keepdim=True)
    return torch.where(totals > _SMALLEST, counts / totals.clamp_min(_SMALLEST), torch.eye(len(counts)).double())


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
        classes *= (probabilities / (classes @ matrix).clamp_min(_SMALLEST)) @ matrix.T
    return classes / classes.sum(1, keepdim=True).clamp_min(_SMALLEST)
