"""Random points, and the losses of relational distillation."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

from tutelage.losses import angle_relations, distance_relations

Loss = Callable[[Tensor, Tensor], Tensor]
both_losses = pytest.mark.parametrize("loss", [distance_relations, angle_relations])


def points(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def huber(a: float, b: float) -> float:
    return 0.5 * (a - b) ** 2 if abs(a - b) <= 1 else abs(a - b) - 0.5


def distances_by_hand(inputs: Tensor) -> list[list[float]]:
    rows = inputs.flatten(1).tolist()
    result = [[math.dist(point, other_row) for other_row in rows] for point in rows]
    nonzero = [d for row in result for d in row if d > 0]
    mean = sum(nonzero) / len(nonzero)
    return [[d / mean for d in row] for row in result]


def distance_by_hand(student: Tensor, teacher: Tensor) -> float:
    n, student_shape, teacher_shape = len(student), distances_by_hand(student), distances_by_hand(teacher)
    return sum(huber(student_shape[i][j], teacher_shape[i][j]) for i, j in product(range(n), repeat=2)) / n**2


def cosine_by_hand(rows: list[list[float]], i: int, j: int, k: int) -> float:
    first, second = ([a - b for a, b in zip(rows[end], rows[j], strict=True)] for end in (i, k))
    size = math.hypot(*first) * math.hypot(*second)
    return sum(a * b for a, b in zip(first, second, strict=True)) / size if size else 0.0


def angles_by_hand(student: Tensor, teacher: Tensor, at: int | None = None) -> float:
    student_shape, teacher_shape = student.flatten(1).tolist(), teacher.flatten(1).tolist()
    n = len(student_shape)
    triplets = [(i, j, k) for i, j, k in product(range(n), repeat=3) if at in (None, j)]
    return sum(huber(cosine_by_hand(student_shape, *t), cosine_by_hand(teacher_shape, *t)) for t in triplets) / len(
        triplets
    )


def gradient(loss: Loss, student: Tensor, teacher: Tensor) -> Tensor:
    student = student.clone().requires_grad_()
    loss(student, teacher).backward()
    assert student.grad is not None
    return student.grad
