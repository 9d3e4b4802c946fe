"""A network that may abstain: how often it errs on the samples that it is surest of.

Pure functions of tensors, of the shapes and with the errors of ``metrics``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.evaluation.metrics import only_labelled


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


def certainty(logits: Tensor) -> Tensor:
    """log(p / (1 - p)) of the largest probability p = max softmax(logits): (N, C) to (N,).

    It rises with p and so ranks samples as p does, but where p itself would be rounded to 1 the ranking goes on.
    Samples whose logits differ by their order or by a constant alone get the same value. With one class it is infinite.
    """
    ordered = logits.sort(1, descending=True).values
    return -(ordered[:, 1:] - ordered[:, :1]).logsumexp(1)


def risk_coverage(logits: Tensor, labels: Tensor) -> RiskCoverage:
    """Answer the surest samples first, by the largest softmax probability, and see how the share of errors grows.

    El-Yaniv, Wiener, "On the Foundations of Noise-free Selective Classification", JMLR 2010; by the largest
    probability: Geifman, El-Yaniv, "Selective Classification for Deep Neural Networks", NeurIPS 2017.

    Equally sure samples are answered in no order: the risk between the first and the last of them is the mean over all
    their orders, for which each of them brings the mean error of all of them. So the order of the samples is of no
    influence, and a network that is equally sure of everything has the same risk at every coverage.
    """
    logits, labels = only_labelled(logits, labels)
    sureness, order = certainty(logits).sort(descending=True, stable=True)
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


def aurc(logits: Tensor, labels: Tensor) -> Tensor:
    """The area under the risk-coverage curve: 0-d, in [0, 1].

    It is the mean of the empirical risks, (1 / N) sum over k = 1 .. N of the risk at coverage k / N. Geifman, Uziel,
    El-Yaniv, "Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers", ICLR 2019. It is low where the network
    is seldom wrong and knows when; a network that is equally sure of everything has its error rate.
    """
    return risk_coverage(logits, labels).area
