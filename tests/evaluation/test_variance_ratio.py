"""The ratio of the variances of embeddings between and within classes."""

from __future__ import annotations

import math

import pytest
import torch

from tutelage.evaluation.embeddings import variance_ratio


def test_by_plain_loops() -> None:
    vectors = torch.randn(30, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(30) % 4
    unit = [[x / math.hypot(*row) for x in row] for row in vectors.tolist()]
    total = [sum(row[d] for row in unit) / 30 for d in range(3)]
    between = within = 0.0
    for label in range(4):
        rows = [row for row, own in zip(unit, labels.tolist(), strict=True) if own == label]
        mean = [sum(row[d] for row in rows) / len(rows) for d in range(3)]
        between += len(rows) * sum((a - b) ** 2 for a, b in zip(mean, total, strict=True))
        within += sum((x - m) ** 2 for row in rows for x, m in zip(row, mean, strict=True))
    assert variance_ratio(vectors, labels) == pytest.approx(between / within, rel=1e-12)


def test_perpendicular_pairs() -> None:
    """Each class has the directions a and -a of its own axis: all means are 0."""
    vectors = torch.tensor([[1.0, 0.0], [-2.0, 0.0], [0.0, 3.0], [0.0, -1.0]])
    assert variance_ratio(vectors, torch.tensor([0, 0, 1, 1])) == pytest.approx(0, abs=1e-12)
    assert variance_ratio(vectors, torch.tensor([0, 1, 0, 1])) == pytest.approx(1)


def test_one_direction_per_class_is_infinite() -> None:
    vectors = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [0.0, 1.0]])
    assert variance_ratio(vectors, torch.tensor([0, 0, 1, 1])) > 1e6


def test_length_does_not_count_and_unlabelled_samples_are_excluded() -> None:
    vectors = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(12) % 3
    expected = variance_ratio(vectors, labels)
    scaled = torch.cat([vectors * torch.arange(1, 13)[:, None], torch.randn(5, 3)])
    assert variance_ratio(scaled, torch.cat([labels, torch.full((5,), -1)])) == pytest.approx(expected, rel=1e-5)
