"""Which samples to label next: minority classes first (Aggarwal, Popescu, Hudelot 2020, arXiv 2202.00390), and others.

Ties are broken by a random order of the candidates, so that candidates with equal predictions are drawn at random.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

Base = Literal["random", "least_confidence", "margin", "entropy", "k_centre"]
Rank = Literal["certain", "uncertain"]

NO_CLASS = -1


@dataclass(frozen=True)
class Candidates:
    """What is known of M samples whose labels can be requested.

    Attributes:
        probabilities: p, (M, C).
        counts: how many labels of each class were requested before, (C,) int64.
        order: a random order of the candidates, (M,) int64.
        features: (M, D), and of the labelled samples (L, D), for "k_centre".
    """

    probabilities: Tensor
    counts: Tensor
    order: Tensor
    features: tuple[Tensor, Tensor] | None = None

    @property
    def margin(self) -> Tensor:
        """The difference of the two largest probabilities, (M,)."""
        first, second = self.probabilities.topk(2, 1).values.unbind(1)
        return first - second

    @property
    def predicted(self) -> Tensor:
        """The class with the largest probability, (M,); -1 where several classes have it."""
        return self.probabilities.argmax(1).masked_fill(self.margin <= 0, NO_CLASS)

    def best(self, scores: Tensor, free: Tensor, number: int) -> Tensor:
        """The candidates with the largest scores (M,) among those that are free (M,) bool, at most ``number``."""
        order = self.order[free[self.order]]
        return order[scores[order].argsort(descending=True, stable=True)][:number]


SCORES: Mapping[str, Callable[[Candidates], Tensor]] = MappingProxyType(
    {
        "random": lambda candidates: torch.zeros(len(candidates.order)),
        "least_confidence": lambda candidates: -candidates.probabilities.amax(1),
        "margin": lambda candidates: -candidates.margin,
        "entropy": lambda candidates: -torch.xlogy(candidates.probabilities, candidates.probabilities).sum(1),
    }
)


def by_base(candidates: Candidates, base: Base, free: Tensor, number: int) -> Tensor:
    """Choose without regard to classes.

    Args:
        candidates: M candidates.
        base: "random"; by the largest "entropy", or smallest largest probability ("least_confidence") or "margin"; or
            "k_centre", see there.
        free: which candidates may be chosen, (M,) bool.
        number: at most so many.

    Returns:
        Indices of candidates.
    """
    if base == "k_centre":
        return k_centre(candidates, free, number)
    return candidates.best(SCORES[base](candidates), free, number)


def k_centre(candidates: Candidates, free: Tensor, number: int) -> Tensor:
    """The greedy core-set of Sener and Savarese 2018, arXiv 1708.00489 [from memory].

    Each choice is the candidate whose features are farthest from the nearest labelled or chosen sample.
    """
    if candidates.features is None:
        raise ValueError("k_centre needs features")
    features, labelled = candidates.features
    distances = torch.cdist(features, labelled).amin(1)
    free, chosen = free.clone(), []
    for _ in range(min(number, int(free.sum()))):
        nearest = candidates.best(distances, free, 1)
        chosen.append(nearest)
        free[nearest] = False
        distances = torch.minimum(distances, torch.cdist(features, features[nearest])[:, 0])
    return torch.cat(chosen) if chosen else torch.empty(0, dtype=torch.int64)


def deficits(counts: Tensor) -> Tensor:
    """C max(0, n - n_c) for the mean n of the counts n_c (C,), (C,) int64: the deficit times the number of classes."""
    return (counts.sum() - len(counts) * counts).clamp_min(0)


def allocation(counts: Tensor, number: int) -> Tensor:
    """Divide requests among the classes in proportion to their deficits, by the largest remainder.

    A class gets no more than it lacks to the mean, rounded up, after these requests. What is left is divided again, by
    the deficits of the counts with the first requests added; a rest remains only if these are balanced.

    Args:
        counts: n_c, (C,) int64.
        number: b.

    Returns:
        (C,) int64, whose sum is at most b.
    """
    quotas = torch.zeros_like(counts)
    mean = -(-(int(counts.sum()) + number) // len(counts))
    while (rest := number - int(quotas.sum())) and bool((missing := deficits(counts + quotas)).any()):
        total = int(missing.sum())
        shares, remainders = rest * missing // total, rest * missing % total
        shares[remainders.argsort(descending=True, stable=True)[: rest - int(shares.sum())]] += 1
        quotas += torch.minimum(shares, (mean - counts - quotas).clamp_min(0))
    return quotas


def by_minority(candidates: Candidates, free: Tensor, number: int, rank: Rank) -> Tensor:
    """Choose candidates that are predicted as classes with few labels, as many of each as ``allocation`` says.

    Args:
        candidates: M candidates.
        free: which candidates may be chosen, (M,) bool.
        number: at most so many. Where too few candidates are predicted as a class, other classes get no more.
        rank: within a predicted class, by the largest ("certain") or smallest ("uncertain") margin.

    Returns:
        Indices of candidates.
    """
    scores = candidates.margin if rank == "certain" else -candidates.margin
    predicted = candidates.predicted
    quotas = allocation(candidates.counts, number).tolist()
    return torch.cat(
        [candidates.best(scores, free & (predicted == label), quota) for label, quota in enumerate(quotas)]
    )


def by_expected_deficit(candidates: Candidates, free: Tensor, number: int) -> Tensor:
    """Choose by the largest sum_c p_c d_c / sum_c d_c, for the deficits d; none if all counts are equal."""
    missing = deficits(candidates.counts)
    if not bool(missing.any()):
        return candidates.order[:0]
    weights = (missing / missing.sum()).to(candidates.probabilities)
    return candidates.best(candidates.probabilities @ weights, free, number)
