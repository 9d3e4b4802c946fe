"""Metrics of ordered classes (grades): the rounded expectation, and agreement by quadratically weighted kappa."""

from __future__ import annotations

import torch
from torch import Tensor

from tutelage.models.outputs import at_least_float32


def expected_grade(logits: Tensor) -> Tensor:
    """The expected grade, rounded: round(sum_k k softmax(z)_k), halves to the even grade.

    It minimises the expected squared error over whole grades, which quadratically weighted kappa counts; the argmax
    minimises the expected number of errors.

    Args:
        logits: z, (N, C).

    Returns:
        (N,) int64, in 0 .. C - 1.
    """
    probabilities = at_least_float32(logits).double().softmax(1)
    grades = torch.arange(logits.shape[1], dtype=probabilities.dtype, device=logits.device)
    return (probabilities @ grades).round().long()


def quadratic_kappa(predicted: Tensor, labels: Tensor) -> Tensor:
    """Return Cohen's kappa with quadratic weights: 0-d float64, at most 1, and 0 for independent predictions.

        1 - sum_ij (i - j)^2 O_ij / sum_ij (i - j)^2 E_ij = 1 - E[(p - y)^2] / (E[p^2] + E[y^2] - 2 E[p] E[y])

    O is the joint distribution of predictions p and labels y, E the product of their marginals. NaN if all predictions
    and labels are the same grade.

    Args:
        predicted, labels: (N,) int64 grades.
    """
    p, y = predicted.double(), labels.double()
    by_chance = p.square().mean() + y.square().mean() - 2 * p.mean() * y.mean()
    return 1 - (p - y).square().mean() / by_chance


def grade_error(predicted: Tensor, labels: Tensor) -> Tensor:
    """Return the mean absolute error of grades: 0-d float64, in grades."""
    return (predicted - labels).abs().double().mean()
