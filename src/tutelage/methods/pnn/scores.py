"""Class scores of a probabilistic neural network: Specht 1990 (Parzen windows); the loss is inferred."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from tutelage.data.batch import UNLABELLED, Batch
from tutelage.models.outputs import Outputs
from tutelage.terms.precision import full_precision
from tutelage.terms.targets import checked_labels
from tutelage.terms.term import Term

NOTHING = -1e30  # the log of a score without any exemplar; finite, so that no gradient is NaN

_GRID = 25  # bandwidths that are tried first
_LARGEST = 1000  # exemplars in a leave-one-out sum


@full_precision
def parzen_log_scores(
    embedding: Tensor, exemplars: Tensor, present: Tensor, sigma: Tensor | float, excluded: Tensor | None = None
) -> Tensor:
    """log S_c of each class, with S_c(h) = 1 / N_c sum_i exp(-||h - h_ci||^2 / (2 sigma^2)) in (0, 1].

    The logarithms are computed by log-sum-exp: S itself is 0 in float32, and has no gradient, more than 14 sigma away
    from all exemplars.

    Args:
        embedding: h, (B, D).
        exemplars: h_ci, (C, K, D).
        present: (C, K) bool; the other exemplars do not count.
        sigma: the bandwidth, () or a number, in the unit of the embedding.
        excluded: (B, C, K) bool, exemplars that do not count for single samples, such as the sample itself.

    Returns:
        (B, C), at most 0; -1e30 for a class without an exemplar.
    """
    counts = present[None] if excluded is None else present & ~excluded
    return _log_scores(_squared_distances(embedding, exemplars), counts, sigma)


def _squared_distances(embedding: Tensor, exemplars: Tensor) -> Tensor:
    """(B, D) and (C, K, D) to (B, C, K). Matrix products would round distances that are small beside the vectors."""
    flat = exemplars.flatten(0, 1)
    distances = torch.cdist(embedding, flat, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.square().view(len(embedding), *exemplars.shape[:2])


def _log_scores(squares: Tensor, counts: Tensor, sigma: Tensor | float) -> Tensor:
    """Squared distances (B, C, K), and which count, to log S, (B, C)."""
    exponents = (-squares / (2 * sigma**2)).where(counts, NOTHING)
    return exponents.logsumexp(2) - counts.sum(2).clamp(min=1).to(exponents).log()


@full_precision
def parzen_cross_entropy(log_scores: Tensor, labels: Tensor, background: float = 0.0) -> Tensor:
    """-log(S_y / (sum_c S_c + delta)) per sample [inferred].

    The constant delta is a background density: with it, a sample far from all exemplars cannot reach a loss of 0 by
    being relatively nearest to its own class.

    Args:
        log_scores: log S, (B, C).
        labels: y, (B,) int64, ``-1`` for no label; or soft labels (B, C), whose largest class counts.
        background: delta, at least 0.

    Returns:
        (B,) nats; 0, without gradient, for a sample without a label and for one whose class has no exemplar.
    """
    labels = checked_labels(labels, log_scores.shape[1])
    own = log_scores.gather(1, labels.clamp(min=0)[:, None]).squeeze(1)
    total = log_scores.logsumexp(1)
    if background:
        total = torch.logaddexp(total, torch.full_like(total, math.log(background)))
    return (total - own).where((labels != UNLABELLED) & (own > NOTHING / 2), 0.0)


@torch.no_grad()
def leave_one_out_sigma(exemplars: Tensor, present: Tensor) -> float:
    """The bandwidth with the largest leave-one-out likelihood of the exemplars' classes.

        minimum over sigma of   - 1/n sum_i sum_c q_ic log(S_c(h_i) / sum_c' S_c'(h_i)),
        q_i = (n onehot(y_i) + 1/C) / (n + 1)

    where S(h_i) is without the exemplar i: with it, sigma -> 0 would have likelihood 1. The labels are smoothed by one
    sample in n + 1, as in Platt scaling (1999), since for well separated classes sigma -> 0 would be best without
    that, too. It is searched from a thousandth to ten times the root mean square distance.

    Which likelihood the paper means is unknown. That of the embeddings under their class's density gives a bandwidth
    that is too small by a factor of 8 on digits (.23 against 1.78 for one network): it assumes that the samples fill
    all dimensions of the embedding.

    Args:
        exemplars: (C, K, D).
        present: (C, K) bool.

    Returns:
        sigma; 1 if all exemplars are equal. At most 1000 exemplars, evenly spaced, enter the sum.
    """
    squares, counts, labels = _leave_one_out(exemplars.double(), present)
    own = labels[:, None] == torch.arange(len(exemplars))
    usable = (counts.any(2) & own).any(1)  # whose class has another exemplar
    squares, counts, own = squares[usable], counts[usable], own[usable]
    scale = float(squares[counts].mean().sqrt()) if len(squares) else 0.0
    if not scale > 0:
        return 1.0
    targets = (len(own) * own.double() + 1 / own.shape[1]) / (len(own) + 1)

    def loss(log_sigma: float) -> float:
        log_scores = _log_scores(squares, counts, scale * math.exp(log_sigma))
        return -float((targets * (log_scores - log_scores.logsumexp(1, keepdim=True))).sum(1).mean())

    grid = np.linspace(math.log(1e-3), math.log(10), _GRID)
    best = int(np.argmin([loss(value) for value in grid]))
    bounds = grid[max(0, best - 1)], grid[min(_GRID - 1, best + 1)]
    return scale * math.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-3}).x)


def leave_one_out_log_scores(exemplars: Tensor, present: Tensor, sigma: float) -> Tensor:
    """log S of exemplars without themselves, (N, C): of all, or of 1000 that are evenly spaced."""
    squares, counts, _ = _leave_one_out(exemplars, present)
    return _log_scores(squares, counts, sigma)


def _leave_one_out(exemplars: Tensor, present: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Squared distances of N exemplars from all, which of these count, both (N, C, K), and the N classes."""
    classes, count, _ = exemplars.shape
    rows = present.flatten().nonzero().squeeze(1)
    if len(rows) > _LARGEST:
        rows = rows[torch.arange(_LARGEST) * len(rows) // _LARGEST]
    itself = (rows[:, None] == torch.arange(classes * count)).view(-1, classes, count)
    return _squared_distances(exemplars.flatten(0, 1)[rows], exemplars), present & ~itself, rows // count


class Exemplars(Protocol):
    """A layer that holds exemplars, as arguments of ``parzen_log_scores``."""

    exemplars: Tensor
    present: Tensor
    sigma: Tensor


class ParzenCrossEntropy(Term):
    """``parzen_cross_entropy`` of the student's embedding and constant exemplars, per sample (B,).

    A sample is no exemplar of itself: otherwise the loss of all exemplars would be small for a small bandwidth,
    whatever the embedding.

    Args:
        head: its current values are used. It does not become part of the term.
        index: (C, K) int64, ``Batch.index`` of each exemplar, -1 where there is none.
        background: delta.
    """

    roles = ("embedding",)
    reads_index = True

    index: Tensor
    reads_teacher = False

    def __init__(self, head: Exemplars, index: Tensor, background: float) -> None:
        super().__init__()
        self._heads, self.background = [head], background
        self.register_buffer("index", index)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,) nats."""
        batch = self.required(batch, "the batch, for its targets")
        (head,) = self._heads
        itself = self.index == batch.index[:, None, None]
        scores = parzen_log_scores(student["embedding"], head.exemplars, head.present, head.sigma, itself)
        return parzen_cross_entropy(scores, batch.targets, self.background)
