"""Which labels are probably wrong, by the evidence of networks that were trained on all labels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.methods.clean_labels.evidence import Evidence

By = Literal["combined", "out_of_sample", "differences", "agreement", "posterior"]

ANCHOR_SHARE = 0.1
"""How many of the samples of an average class are its anchors."""

_SMALLEST = 1e-9


@dataclass(frozen=True)
class Verdict:
    """What is probably wrong.

    Attributes:
        wrong: (N,) float64, the probability that the label is wrong.
        suggested: (N,) int64, the most probable true class other than the label.
        support: by kind of evidence (N,) float32 in [0, 1]: how much it supports the label.
        noise_matrix: (C, C) float64, the estimated probability of each label (column) for samples of each true class
            (row).
    """

    wrong: Tensor
    suggested: Tensor
    support: Mapping[str, Tensor]
    noise_matrix: Tensor


def judge(evidence: Evidence, labels: Tensor, by: By = "combined") -> Verdict:
    """Estimate for each label the probability that it is wrong.

    Each kind of evidence is a number in [0, 1] that is small for wrong labels:

    - out_of_sample: the probability of the label by the network that was trained without the sample;
    - differences: (d + 1) / 2, where d is P-DIFF's difference averaged over epochs and networks;
    - agreement: the mean probability of the label over all networks;
    - posterior: P(y | x, y) below, with the mean probabilities over all networks as p. It takes into account that some
      classes are confused more often than others.

    The chosen one, or the mean rank of all four, orders the labels. Probabilities p of the given labels and the noise
    matrix T give the probability of the true class k of a sample with the label y:

        P(k | x, y) = q[k] T[k, y] / sum_j q[j] T[j, y],   with q such that q T = p

    The probability that a label is wrong is 1 - P(y | x, y), with the calibrated out-of-sample probabilities as p, made
    monotone in the order by isotonic regression.

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
    matrix = noise_matrix(probabilities)
    support["posterior"] = _posterior(evidence.votes.double(), matrix, labels).gather(1, own).squeeze(1).float()
    score = torch.stack([_ranks(v) for v in support.values()]).mean(0) if by == "combined" else support[by].double()
    posterior = _posterior(probabilities, matrix, labels)
    wrong = 1 - posterior.gather(1, own).squeeze(1)
    ordered = IsotonicRegression(increasing=False).fit_transform(score.numpy(), wrong.numpy())
    return Verdict(torch.from_numpy(ordered).clamp(0, 1), posterior.scatter(1, own, -1.0).argmax(1), support, matrix)


def _posterior(probabilities: Tensor, matrix: Tensor, labels: Tensor) -> Tensor:
    """P(k | x, y) for each class k, (N, C) float64."""
    posterior = true_classes(probabilities, matrix) * matrix[:, labels].T
    return posterior / posterior.sum(1, keepdim=True).clamp_min(_SMALLEST)


def _ranks(values: Tensor) -> Tensor:
    """The rank of each value, equal values sharing their mean rank, (N,) float64 in (0, 1]."""
    from scipy.stats import rankdata

    return torch.from_numpy(rankdata(values.numpy()) / len(values))


def calibrated(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return p^(1/T) / sum p^(1/T) with the temperature T whose cross-entropy with the labels is smallest.

    Args:
        probabilities: p, (N, C), of networks that were not trained with these samples.
        labels: (N,) int64.

    Returns:
        (N, C) float64.
    """
    from scipy.optimize import minimize_scalar

    logits = probabilities.double().clamp_min(_SMALLEST).log()
    fitted = minimize_scalar(
        lambda log_t: float(F.cross_entropy(logits / math.exp(log_t), labels)), bounds=(-3.0, 3.0), method="bounded"
    )
    return (logits / math.exp(float(fitted.x))).softmax(1)


def noise_matrix(probabilities: Tensor, share: float = ANCHOR_SHARE) -> Tensor:
    """Estimate the noise matrix T from anchors: Patrini, Rozza, Menon, Nock, Qu 2017, arXiv 1609.03683 [from memory].

    T[k, y] is the mean probability of the label y over the anchors of class k, the samples with the largest p[k]: they
    almost certainly are of class k, so their p[y] is the probability that this class is labelled y. The paper takes one
    anchor, or a quantile; the mean over several is ours.

    Args:
        probabilities: p, (N, C), calibrated for the given labels.
        share: how many of N / C samples are anchors of a class, at least 5.

    Returns:
        (C, C) float64, rows sum to 1.
    """
    size, classes = probabilities.shape
    count = min(size, max(5, round(share * size / classes)))
    return torch.stack(
        [probabilities[probabilities[:, k].topk(count).indices].mean(0) for k in range(classes)]
    ).double()


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
