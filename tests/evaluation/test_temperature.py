"""Temperature scaling: closed form, a grid in plain loops, and its extremes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tutelage.evaluation.temperature import LARGEST, fitted_temperature


def sample(count: int, classes: int, sharpness: float, seed: int) -> tuple[Tensor, Tensor]:
    """Logits, and labels drawn from softmax(sharpness z)."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, generator=generator)
    labels = torch.multinomial((sharpness * logits).softmax(1), 1, generator=generator).squeeze(1)
    return logits, labels


@pytest.mark.parametrize(("count", "right"), [(10, 8), (10, 10), (140, 138), (1, 1)])
def test_closed_form_of_two_classes(count: int, right: int) -> None:
    """With logits (1, 0) for all samples, the probability of the first class is (right + 1/2) / (n + 1)."""
    logits = torch.tensor([[1.0, 0.0]]).expand(count, 2)
    labels = (torch.arange(count) >= right).long()
    probability = 1 / (1 + math.exp(-1 / fitted_temperature(logits, labels)))
    assert probability == pytest.approx((right + 0.5) / (count + 1), abs=1e-9)


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 8.0])
def test_equals_a_grid_in_plain_loops(sharpness: float) -> None:
    logits, labels = sample(40, 5, sharpness, 1)

    def loss(temperature: float) -> float:
        total = 0.0
        for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True):
            normaliser = math.log(sum(math.exp(z / temperature) for z in row))
            for k, z in enumerate(row):
                target = (40 * (k == label) + 1 / 5) / 41
                total -= target * (z / temperature - normaliser)
        return total / 40

    grid = [math.exp(step / 100) for step in range(-400, 401)]
    best = min(grid, key=loss)
    assert fitted_temperature(logits, labels) == pytest.approx(best, rel=0.01)
    assert loss(fitted_temperature(logits, labels)) <= loss(best)


@pytest.mark.parametrize("sharpness", [0.5, 4.0, 30.0])
def test_finds_the_temperature_that_drew_the_labels(sharpness: float) -> None:
    assert fitted_temperature(*sample(20_000, 10, sharpness, 2)) == pytest.approx(1 / sharpness, rel=0.05)


def test_temperature_is_proportional_to_the_logits() -> None:
    logits, labels = sample(100, 4, 3.0, 3)
    temperature = fitted_temperature(logits, labels)
    assert fitted_temperature(50 * logits, labels) == pytest.approx(50 * temperature, rel=1e-5)
    assert fitted_temperature(logits.double() / temperature, labels) == pytest.approx(1, rel=1e-5)


def test_samples_without_a_label_do_not_count() -> None:
    logits, labels = sample(60, 4, 3.0, 4)
    partly = labels.where(torch.arange(60) < 30, -1)
    assert fitted_temperature(logits, partly) == fitted_temperature(logits[:30], labels[:30])


def test_extremes_are_finite() -> None:
    logits = torch.eye(4)
    assert 0 < fitted_temperature(logits, torch.arange(4)) < 1  # all right
    assert fitted_temperature(logits, torch.arange(4).flip(0)) == LARGEST  # all wrong
    assert fitted_temperature(torch.ones(5, 3), torch.zeros(5).long()) == LARGEST  # no difference
    assert fitted_temperature(1e-12 * logits, torch.arange(4)) == 1 / LARGEST
