"""Metrics in plain Python loops in float64, and random predictions."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def softmax(row: list[float]) -> list[float]:
    top = max(row)
    powers = [math.exp(value - top) for value in row]
    return [power / sum(powers) for power in powers]


def first_largest(row: list[float]) -> int:
    return row.index(max(row))


def labelled(logits: Tensor, labels: Tensor) -> list[tuple[list[float], int]]:
    pairs = zip(logits.double().tolist(), labels.tolist(), strict=True)
    return [(row, label) for row, label in pairs if label != -1]


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def slow_accuracy(logits: Tensor, labels: Tensor) -> float:
    return mean([float(first_largest(row) == label) for row, label in labelled(logits, labels)])


def slow_ece(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    pairs = labelled(logits, labels)
    certainties = [(max(softmax(row)), float(first_largest(row) == label)) for row, label in pairs]
    total = 0.0
    for b in range(bins):
        members = [pair for pair in certainties if b / bins < pair[0] <= (b + 1) / bins]
        if members:
            total += (
                len(members) / len(certainties) * abs(mean([p for p, _ in members]) - mean([hit for _, hit in members]))
            )
    return total


def draw_predictions(seed: int, samples: int, classes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of a student and a teacher, and labels that often match them; every fifth sample is unlabelled."""
    generator = torch.Generator().manual_seed(seed)
    teacher = 2 * torch.randn(samples, classes, generator=generator, dtype=torch.float64)
    student = (teacher + torch.randn(samples, classes, generator=generator, dtype=torch.float64)).to(dtype)
    labels = teacher.argmax(1)
    labels[::5] = -1
    return student, teacher.to(dtype), labels


# Six samples with probability 1 for one of three classes.
CERTAIN = 1000.0 * torch.eye(3).repeat(2, 1)
CORRECT = torch.tensor([0, 1, 2, 0, 1, 2])


def of_confidence(*confidences: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """Two-class logits whose softmax has these probabilities of class 0."""
    first = torch.tensor(confidences, dtype=dtype)
    return torch.stack([first.log(), (1 - first).log()], 1)
