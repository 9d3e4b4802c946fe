"""Feature maps, and flow matrices in plain loops."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from tutelage.terms.flow import Reduction

REDUCTIONS: list[Reduction] = ["relative", "paper", "mean"]
every_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)


def features(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def matrix_by_hand(first: list[Any], second: list[Any]) -> list[list[float]]:
    """The matrix of one sample; the larger map is max-pooled, for sizes that are multiples."""
    height, width = (min(len(a), len(b)) for a, b in ((first[0], second[0]), (first[0][0], second[0][0])))

    def pooled(channel: list[list[float]], y: int, x: int) -> float:
        down, across = len(channel) // height, len(channel[0]) // width
        return max(channel[y * down + i][x * across + j] for i in range(down) for j in range(across))

    pixels = list(product(range(height), range(width)))
    return [[sum(pooled(a, *p) * pooled(b, *p) for p in pixels) / len(pixels) for b in second] for a in first]


def loss_by_hand(student: list[Any], teacher: list[Any], reduction: Reduction) -> list[float]:
    """The loss of lists of matrices, one per sample."""
    squares = [
        [(t - s) ** 2 for rows in zip(student_role, teacher_role, strict=True) for s, t in zip(*rows, strict=True)]
        for student_role, teacher_role in zip(student, teacher, strict=True)
    ]
    energy = sum(t * t for matrix in teacher for row in matrix for t in row) / len(teacher)
    divisor = {"paper": 1, "mean": len(squares[0]), "relative": energy}[reduction]
    return [sum(squares_of_sample) / divisor for squares_of_sample in squares]


def matrices_by_hand(first: Tensor, second: Tensor) -> list[list[list[float]]]:
    return [matrix_by_hand(*pair) for pair in zip(first.tolist(), second.tolist(), strict=True)]
