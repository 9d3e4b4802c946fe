"""A network that answers only what it is surest of: risk by coverage.

Pure functions of tensors, of the shapes and with the errors of ``metrics``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.data.batch import UNLABELLED
from tutelage.evaluation.json_numbers import json_numbers
from tutelage.evaluation.metrics import only_labelled

CURVE_POINTS = 101  # at most so many of a risk-coverage curve are kept


@dataclass(frozen=True, slots=True)
class RiskCoverage:
    """The risk-coverage curve of N samples.

    Attributes:
        coverage: (N,) float, k / N for k = 1 .. N: the share of the samples that is answered.
        risk: (N,) float, the share of wrong answers among these, the k surest ones.
    """

    coverage: Tensor
    risk: Tensor

    @property
    def area(self) -> Tensor:
        """The mean of the N risks: 0-d, NaN without samples."""
        return self.risk.mean()

    @property
    def excess_area(self) -> Tensor:
        """What the area is above that of a perfect ranking, which puts all wrong answers last: 0-d, at least 0.

        E-AURC of Geifman, Uziel, El-Yaniv 2019: the part of the area that is not the classifier's errors but its not
        knowing of them.
        """
        answered = torch.arange(1, len(self.risk) + 1, device=self.risk.device)
        right = (1 - self.risk[-1:]) * len(self.risk)
        return self.area - ((answered - right).clamp(min=0) / answered).mean()

    def risk_at(self, coverages: Sequence[float]) -> Tensor:
        """The risk on the surest round(c N) samples, one at least, for each coverage c in (0, 1]: (coverages,)."""
        if not all(0 < coverage <= 1 for coverage in coverages):
            raise ValueError(f"coverages must lie in (0, 1], got {list(coverages)}")
        if not len(self.risk):
            return self.risk.new_full((len(coverages),), float("nan"))
        return self.risk[[max(round(coverage * len(self.risk)), 1) - 1 for coverage in coverages]]


def certainty(logits: Tensor) -> Tensor:
    """log(p / (1 - p)) of the largest probability p = max softmax(logits): (N, C) to (N,).

    It rises with p and so ranks samples as p does, but where p itself would be rounded to 1 the ranking goes on.
    Samples whose logits differ by their order or by a constant alone get the same value. With one class it is infinite.
    """
    ordered = logits.sort(1, descending=True).values
    return -(ordered[:, 1:] - ordered[:, :1]).logsumexp(1)


def risk_coverage(logits: Tensor, labels: Tensor, score: Tensor | None = None) -> RiskCoverage:
    """Answer the surest samples first, and see how the share of errors grows.

    Which are the surest says ``score``, (N,), higher ones first; unless it is given it is ``certainty``, the largest
    softmax probability (the "softmax response").
    El-Yaniv, Wiener, "On the Foundations of Noise-free Selective Classification", JMLR 2010; by the largest
    probability: Geifman, El-Yaniv, "Selective Classification for Deep Neural Networks", NeurIPS 2017.

    Equally sure samples are answered in no order: the risk between the first and the last of them is the mean over all
    their orders, for which each of them brings the mean error of all of them. So the order of the samples is of no
    influence, and a network that is equally sure of everything has the same risk at every coverage.
    """
    if score is not None and score.shape != labels.shape:
        raise ValueError(f"a score for each of {len(labels)} samples is needed, got shape {tuple(score.shape)}")
    if score is not None and score.isnan().any():
        raise ValueError("a score that is NaN ranks nothing")
    has_one = labels != UNLABELLED
    logits, labels = only_labelled(logits, labels)
    sureness, order = (certainty(logits) if score is None else score[has_one]).sort(descending=True, stable=True)
    wrong = (logits.argmax(1) != labels)[order].cumsum(0)
    _, alike = torch.unique_consecutive(sureness, return_counts=True)
    last = alike.cumsum(0) - 1
    errors = wrong[last].diff(prepend=wrong.new_zeros(1))
    before, start = wrong[last] - errors, last + 1 - alike
    each = torch.stack([before, start, errors, alike]).repeat_interleave(alike, 1)
    before, start, errors, size = each
    answered = torch.arange(1, len(labels) + 1, device=labels.device)
    expected = before + (answered - start) * errors.to(logits.dtype) / size
    return RiskCoverage(coverage=answered.to(logits.dtype) / len(labels), risk=expected / answered)


def subsampled(curve: RiskCoverage) -> dict[str, list[float | None]]:
    """A curve at no more than ``CURVE_POINTS`` coverages, evenly, the first and the last among them."""
    size = len(curve.risk)
    places = list(range(size))
    if size > CURVE_POINTS:
        places = [round(place * (size - 1) / (CURVE_POINTS - 1)) for place in range(CURVE_POINTS)]
    return {"coverage": json_numbers(curve.coverage[places]), "risk": json_numbers(curve.risk[places])}


def aurc(logits: Tensor, labels: Tensor) -> Tensor:
    """The area under the risk-coverage curve: 0-d, in [0, 1].

    It is the mean of the empirical risks, (1 / N) sum over k = 1 .. N of the risk at coverage k / N. Geifman, Uziel,
    El-Yaniv, "Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers", ICLR 2019. It is low where the network
    is seldom wrong and knows when; a network that is equally sure of everything has its error rate.
    """
    return risk_coverage(logits, labels).area
