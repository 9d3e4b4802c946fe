"""Selective classification, which abstains on the least certain samples: risk by coverage.

Pure functions of tensors, with the shapes and errors of ``metrics``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.data.batch import UNLABELLED
from tutelage.evaluation.json_numbers import json_numbers
from tutelage.evaluation.metrics import only_labelled

CURVE_POINTS = 101  # maximal number of saved points of a risk-coverage curve


@dataclass(frozen=True, slots=True)
class RiskCoverage:
    """The risk-coverage curve of N samples.

    Attributes:
        coverage: (N,) float, k / N for k = 1 .. N: the share of samples that are classified.
        risk: (N,) float, the error rate on these k most certain samples.
    """

    coverage: Tensor
    risk: Tensor

    @property
    def area(self) -> Tensor:
        """Return the mean of the N risks: 0-d, NaN without samples."""
        return self.risk.mean()

    @property
    def excess_area(self) -> Tensor:
        """Return the area above that of a perfect ranking, with all errors last: 0-d, at least 0.

        E-AURC of Geifman, Uziel, El-Yaniv 2019: the part of the area due to the ranking, not to the error rate.
        """
        covered = torch.arange(1, len(self.risk) + 1, device=self.risk.device)
        correct = (1 - self.risk[-1:]) * len(self.risk)
        return self.area - ((covered - correct).clamp(min=0) / covered).mean()

    def risk_at(self, coverages: Sequence[float]) -> Tensor:
        """Return the risk on the round(c N) most certain samples, at least one, for each coverage c: (coverages,).

        Raises:
            ValueError: a coverage is outside (0, 1].
        """
        if not all(0 < coverage <= 1 for coverage in coverages):
            raise ValueError(f"coverages must lie in (0, 1], got {list(coverages)}")
        if not len(self.risk):
            return self.risk.new_full((len(coverages),), float("nan"))
        return self.risk[[max(round(coverage * len(self.risk)), 1) - 1 for coverage in coverages]]


def certainty(logits: Tensor) -> Tensor:
    """Return log(p / (1 - p)) of the largest probability p = max softmax(logits): (N, C) to (N,).

    It ranks samples as p does, and still distinguishes samples whose p is rounded to 1. Samples whose logits differ
    only by their order or by a constant get the same value. With one class it is infinite.
    """
    ordered = logits.sort(1, descending=True).values
    return -(ordered[:, 1:] - ordered[:, :1]).logsumexp(1)


def risk_coverage(logits: Tensor, labels: Tensor, score: Tensor | None = None) -> RiskCoverage:
    """Compute the risk-coverage curve of a ranking of the samples.

    Samples are ranked by ``score``, (N,), the highest first. The default is ``certainty``, which ranks by the largest
    softmax probability (the "softmax response").
    El-Yaniv, Wiener, "On the Foundations of Noise-free Selective Classification", JMLR 2010; by the largest
    probability: Geifman, El-Yaniv, "Selective Classification for Deep Neural Networks", NeurIPS 2017.

    Tied samples have no order: their risk is the mean over all their orders, in which each contributes the mean error
    of the tied samples. The order of the samples therefore does not matter, and a network that is equally certain of
    all samples has the same risk at every coverage.
    """
    if score is not None and score.shape != labels.shape:
        raise ValueError(
            f"score must have shape ({len(labels)},), one value per sample, got shape {tuple(score.shape)}"
        )
    if score is not None and score.isnan().any():
        raise ValueError("score must not contain NaN")
    labelled = labels != UNLABELLED
    logits, labels = only_labelled(logits, labels)
    certainties, order = (certainty(logits) if score is None else score[labelled]).sort(descending=True, stable=True)
    error_counts = (logits.argmax(1) != labels)[order].cumsum(0)
    _, tied = torch.unique_consecutive(certainties, return_counts=True)
    last = tied.cumsum(0) - 1
    errors = error_counts[last].diff(prepend=error_counts.new_zeros(1))
    before, start = error_counts[last] - errors, last + 1 - tied
    before, start, errors, size = torch.stack([before, start, errors, tied]).repeat_interleave(tied, 1)
    covered = torch.arange(1, len(labels) + 1, device=labels.device)
    expected = before + (covered - start) * errors.to(logits.dtype) / size
    return RiskCoverage(coverage=covered.to(logits.dtype) / len(labels), risk=expected / covered)


def subsampled(curve: RiskCoverage) -> dict[str, list[float | None]]:
    """Return the curve at no more than ``CURVE_POINTS`` evenly spaced coverages, including the first and the last."""
    size = len(curve.risk)
    indices = list(range(size))
    if size > CURVE_POINTS:
        indices = [round(i * (size - 1) / (CURVE_POINTS - 1)) for i in range(CURVE_POINTS)]
    return {"coverage": json_numbers(curve.coverage[indices]), "risk": json_numbers(curve.risk[indices])}


def aurc(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the area under the risk-coverage curve: 0-d, in [0, 1].

    It is the mean of the empirical risks, (1 / N) sum over k = 1 .. N of the risk at coverage k / N. Geifman, Uziel,
    El-Yaniv, "Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers", ICLR 2019. It is low if the network
    makes few errors and is uncertain about them; if it is equally certain of all samples, it is the error rate.
    """
    return risk_coverage(logits, labels).area
