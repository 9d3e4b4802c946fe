"""Estimates of dependence: closed forms, plain loops, saturation."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from tutelage.methods.mi_pruning.estimators import (
    Bounds,
    check_not_saturated,
    class_entropy,
    energy_distance,
    entropy,
    largest_energy_distance,
    median_variance,
    mutual_information,
    squared_distances,
    standardised,
)

BOUNDS: tuple[Bounds, ...] = get_args(Bounds)


def looped_entropy(x: list[list[float]], variance: float, factor: int) -> float:
    """The bound of the entropy, from its equation."""
    size, total = len(x[0]), 0.0
    for one in x:
        distances = [sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) for other in x]
        total += math.log(sum(math.exp(-d / (factor * variance)) for d in distances) / len(x))
    return size / 2 + size / 2 * math.log(2 * math.pi * variance) - total / len(x)


@pytest.mark.parametrize("bounds", BOUNDS)
def test_information_equals_plain_loops(bounds: Bounds) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    labels = torch.arange(20) % 3
    factors = {"upper": (2, 2), "lower": (8, 8), "mixed": (2, 8)}[bounds]
    expected = looped_entropy(x.tolist(), 0.7, factors[0])
    for label in range(3):
        own = x[labels == label].tolist()
        expected -= len(own) / 20 * looped_entropy(own, 0.7, factors[1])
    assert math.isclose(mutual_information(x, labels, 0.7, bounds), expected, rel_tol=1e-9)


def test_entropy_equals_plain_loops_and_is_exact_for_one_point() -> None:
    x = torch.randn(9, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert math.isclose(entropy(x, 0.3), looped_entropy(x.tolist(), 0.3, 2), rel_tol=1e-12)
    assert math.isclose(entropy(x, 0.3, "lower"), looped_entropy(x.tolist(), 0.3, 8), rel_tol=1e-12)
    assert entropy(x, 0.3, "lower") < entropy(x, 0.3)
    point = torch.ones(5, 4)
    for bound in ("upper", "lower"):  # that of the Gaussian noise
        assert math.isclose(entropy(point, 0.5, bound), 2 * (1 + math.log(2 * math.pi * 0.5)), rel_tol=1e-12)


@pytest.mark.parametrize("bounds", BOUNDS)
def test_closed_forms(bounds: Bounds) -> None:
    labels = torch.arange(40) % 2
    apart = labels[:, None].double() * torch.full((1, 3), 100.0, dtype=torch.float64)
    assert math.isclose(mutual_information(apart, labels, 1.0, bounds), math.log(2), rel_tol=1e-9)
    assert mutual_information(apart, torch.zeros(40), 1.0, "upper") == 0  # one class
    assert mutual_information(torch.zeros(40, 3), labels, 1.0, bounds) == 0
    shares = torch.tensor([0] * 10 + [1] * 30)
    expected = -0.25 * math.log(0.25) - 0.75 * math.log(0.75)
    assert math.isclose(mutual_information(100.0 * shares[:, None], shares, 1.0, bounds), expected, rel_tol=1e-9)
    assert math.isclose(class_entropy(shares), expected, rel_tol=1e-12)


def independent(size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(600, size, generator=generator), torch.randint(10, (600,), generator=generator)


def test_independent_features_have_no_information_with_matched_bounds_and_much_with_mixed_ones() -> None:
    x, labels = independent(2)
    assert abs(mutual_information(x, labels, 1.0, "upper") - 0.03) < 0.01
    assert abs(mutual_information(x, labels, 1.0, "lower")) < 0.02
    assert abs(mutual_information(x, labels, 1.0, "mixed") - 0.75) < 0.05


@pytest.mark.parametrize("size", [10, 64])
def test_little_noise_saturates_and_the_median_does_not(size: int, refused: Any) -> None:
    x, labels = independent(size)
    limit = class_entropy(labels)
    score = mutual_information(x, labels, 1e-3)
    assert math.isclose(score, limit, rel_tol=0.01)  # although x says nothing about the labels
    with refused("within 1 % of the entropy of the classes", "--set variance=0"):
        check_not_saturated([score, limit], limit)
    informed = mutual_information(x, labels, median_variance(x))
    assert informed < 0.05
    check_not_saturated([score, informed], limit)
    check_not_saturated([], limit)


def test_median_variance() -> None:
    x = torch.tensor([[0.0], [1.0], [3.0]])  # squared distances 1, 4, 9
    assert median_variance(x) == 2
    assert median_variance(torch.ones(4, 2)) == 1
    assert torch.equal(squared_distances(x), torch.tensor([[0.0, 1, 9], [1, 0, 4], [9, 4, 0]], dtype=torch.float64))


def test_standardised() -> None:
    x = 5 + 3 * torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    x[:, 1] = 0.1  # constant, but the mean of 50 such numbers is not exactly 0.1
    result = standardised(x)
    assert result.mean(0).abs().max() < 1e-12
    torch.testing.assert_close(result.square().mean(0), torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64))


def test_energy_distance() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(5, 3, generator=generator), torch.randn(7, 3, generator=generator)

    def mean(one: Tensor, other: Tensor) -> float:
        pairs = [(a, b) for a in one.double() for b in other.double()]
        return sum(float((a - b).square().sum().sqrt()) for a, b in pairs) / len(pairs)

    assert math.isclose(energy_distance(x, y), 2 * mean(x, y) - mean(x, x) - mean(y, y), rel_tol=1e-9)
    assert abs(energy_distance(x, x)) < 1e-12
    points = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    assert math.isclose(energy_distance(points[:1], points[1:]), 10, rel_tol=1e-12)
    # The largest class is 1, at 0; the others are at 1 and 5.
    samples = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 5.0])[:, None]
    assert math.isclose(largest_energy_distance(samples, torch.tensor([1, 1, 1, 0, 0, 2])), 10, rel_tol=1e-12)
    assert largest_energy_distance(samples, torch.zeros(6)) == 0
