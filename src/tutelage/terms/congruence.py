"""Correlation congruence (CC): Peng, Jin, Liu, Li, Wu, Liu, Zhou, Zhang 2019, arXiv 1904.01802."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs
from tutelage.terms.precision import full_precision, scale_of
from tutelage.terms.shapes import check_samples
from tutelage.terms.term import Term
from tutelage.terms.unit import unit


@full_precision
def gaussian_correlations(embeddings: Tensor, gamma: float = 0.4, order: int = 2) -> Tensor:
    """The Gaussian kernel of unit vectors, exp(-gamma ||x_i - x_j||^2), by its Taylor series at x_i . x_j = 0.

        C_ij = exp(-2 gamma) sum_{p=0}^{order} (2 gamma)^p / p! (x_i . x_j)^p

    Args:
        embeddings: (B, ...), flattened and scaled to length 1 per sample.
        gamma: of the kernel, > 0.
        order: the last power of the series.

    Returns:
        (B, B).
    """
    flat = embeddings.flatten(1)
    directions = unit(flat / scale_of(flat))
    products = directions @ directions.T
    powers = [(2 * gamma) ** p / math.factorial(p) * products**p for p in range(order + 1)]
    return math.exp(-2 * gamma) * torch.stack(powers).sum(0)


@full_precision
def correlation_congruence(student: Tensor, teacher: Tensor, gamma: float = 0.4, order: int = 2) -> Tensor:
    """The loss of correlation congruence, 1/B^2 ||C_S - C_T||_F^2 with ``gaussian_correlations`` C.

    RepDistiller's ``Correlation``, which benchmarks call CC, is another loss: it has no correlations.

    Args:
        student, teacher: embeddings (B, ...), of any widths. No gradient reaches the teacher's.
        gamma, order: as in ``gaussian_correlations``.

    Returns:
        (), without unit: one value for the whole batch.
    """
    check_samples(student, teacher)
    difference = gaussian_correlations(teacher.detach(), gamma, order) - gaussian_correlations(student, gamma, order)
    return difference.square().mean()


class CorrelationCongruence(Term):
    """``correlation_congruence`` of the embeddings, the inputs of the classifiers: one value ().

    Args:
        gamma, order: as in ``gaussian_correlations``.
    """

    reads_labels = False
    roles = ("embedding",)

    def __init__(self, gamma: float = 0.4, order: int = 2) -> None:
        super().__init__()
        if gamma <= 0 or order < 1:
            raise TutelageError(f"gamma must be above 0 and the order 1 or more, got {gamma} and {order}")
        self.gamma, self.order = gamma, order

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(), without unit."""
        return correlation_congruence(student["embedding"], self.required(teacher)["embedding"], self.gamma, self.order)
