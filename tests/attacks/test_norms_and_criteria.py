"""Norms and criteria of attacks: optimality of projections and steps, and closed forms."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tutelage.attacks import Accepted, Misclassified, Targeted, margin
from tutelage.attacks.norms import NORMS, Norm, distance, project, steepest

Refused = Callable[..., AbstractContextManager[None]]


def points(count: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(count, 2, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("norm", NORMS)
def test_the_projection_is_the_nearest_point_of_the_ball(norm: Norm) -> None:
    """No other point of the ball is nearer: (x - P) . (z - P) <= 0 for each z in it."""
    centre = torch.full((20, 2, 3, 3), 0.5, dtype=torch.float64)
    inputs = centre + points(20, scale=0.1)
    projected = project(inputs, centre, norm, 0.2)
    assert distance(centre, projected, norm).max() <= 0.2 + 1e-12
    outside = distance(centre, inputs, norm) > 0.2
    assert torch.allclose(projected[~outside], inputs[~outside])
    for seed in range(1, 6):
        other = project(centre + points(20, seed, 0.2), centre, norm, 0.2)
        assert ((inputs - projected) * (other - projected)).flatten(1).sum(1).max() <= 1e-12


@pytest.mark.parametrize("norm", NORMS)
def test_the_projection_stays_in_the_pixel_range_and_in_the_ball(norm: Norm) -> None:
    centre = torch.rand(20, 2, 3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    projected = project(centre + points(20), centre, norm, 0.7)
    assert projected.min() >= 0
    assert projected.max() <= 1
    assert distance(centre, projected, norm).max() <= 0.7 + 1e-12


@pytest.mark.parametrize("norm", NORMS)
def test_no_step_of_norm_1_climbs_faster(norm: Norm) -> None:
    gradient, inputs = points(20), torch.full((20, 2, 3, 3), 0.5, dtype=torch.float64)
    step = steepest(gradient, inputs, norm)
    torch.testing.assert_close(distance(inputs, inputs + step, norm), torch.ones(20, dtype=torch.float64))
    dual = {"linf": 1.0, "l2": 2.0, "l1": float("inf")}[norm]
    expected = torch.linalg.vector_norm(gradient.flatten(1), dual, dim=1)
    torch.testing.assert_close((gradient * step).flatten(1).sum(1), expected)


def test_an_l1_step_avoids_values_at_the_end_of_the_range() -> None:
    gradient = torch.tensor([[3.0, 2.0, -5.0, 1.0]])
    assert steepest(gradient, torch.tensor([[1.0, 0.5, 0.0, 0.5]]), "l1").tolist() == [[0, 1, 0, 0]]


LOGITS = torch.tensor([[3.0, 1.0, 2.0], [0.0, 0.0, -1.0], [1.0, 4.0, 2.0]])


def test_margins() -> None:
    assert margin(LOGITS, torch.tensor([0, 0, 0])).tolist() == [-1, 0, 3]
    assert Misclassified(top=2).margin(LOGITS, torch.tensor([0, 0, 0])).tolist() == [-2, -1, 1]
    assert Misclassified(confidence=2.5).margin(LOGITS, torch.tensor([0, 0, 0])).tolist() == [-3.5, -2.5, 0.5]
    assert Targeted().margin(LOGITS, torch.tensor([0, 0, 1])).tolist() == [1, 0, 2]
    by_probability = Targeted(probability=0.5).margin(LOGITS, torch.tensor([0, 0, 1]))
    probabilities = LOGITS.softmax(1)[torch.arange(3), torch.tensor([0, 0, 1])]
    torch.testing.assert_close(by_probability, torch.minimum(torch.tensor([1.0, 0, 2]), (probabilities / 0.5).log()))


def test_success_agrees_with_argmax_also_for_equal_logits() -> None:
    for labels in (torch.tensor([0, 0, 0]), torch.tensor([1, 1, 1]), torch.tensor([2, 2, 2])):
        predicted = LOGITS.argmax(1)
        assert torch.equal(Misclassified().success(LOGITS, labels), predicted != labels)
        assert torch.equal(Targeted().success(LOGITS, labels), predicted == labels)


def test_losses_are_signed_cross_entropies() -> None:
    labels = torch.tensor([0, 1, 2])
    expected = F.cross_entropy(LOGITS, labels, reduction="none")
    torch.testing.assert_close(Misclassified().loss(LOGITS, labels), expected)
    torch.testing.assert_close(Targeted().loss(LOGITS, labels), -expected)


def test_shortfalls_of_probabilities() -> None:
    p = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]])
    labels = torch.tensor([0, 0])
    torch.testing.assert_close(Misclassified().shortfall(p, labels), torch.tensor([0.3, 0.0]))
    torch.testing.assert_close(Misclassified(top=2).shortfall(p, labels), torch.tensor([0.8, 0.0]))
    torch.testing.assert_close(Targeted(probability=0.95).shortfall(p, labels), torch.tensor([0.35, 0.75]))
    torch.testing.assert_close(Targeted(probability=0.4).shortfall(p, labels), torch.tensor([0.0, 0.5]))
    torch.testing.assert_close(Targeted().shortfall(p, labels), torch.tensor([0.0, 0.3]))


def test_no_gradient_of_a_targeted_shortfall_reaches_the_other_classes() -> None:
    p = torch.tensor([[0.2, 0.5, 0.3]], requires_grad=True)
    (gradient,) = torch.autograd.grad(Targeted().shortfall(p, torch.tensor([0])).sum(), p)
    assert gradient.tolist() == [[-1, 0, 0]]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [(Misclassified, {"top": 0}), (Misclassified, {"confidence": -1.0}), (Targeted, {"probability": 1.0})],
)
def test_invalid_criteria_are_refused(kind: Any, settings: dict[str, float], refused: Refused) -> None:
    with refused("the criterion", next(iter(settings))):
        kind(**settings)


def test_accepted_is_neither_the_label_nor_the_rejection() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [1.0, 2.0, 3.0], [3.0, 1.0, 2.0], [2.0, 2.0, 0.0], [0.0, 2.0, 2.0]])
    labels = torch.zeros(5, dtype=torch.int64)
    criterion = Accepted()
    assert criterion.success(logits, labels).tolist() == [True, False, False, False, False]
    assert criterion.margin(logits, labels).tolist() == [1, -1, -2, 0, 0]
    assert criterion.shortfall(logits, labels).tolist() == [0, 1, 2, 0, 0]
    assert criterion.replace(confidence=0.5).margin(logits, labels).tolist() == [0.5, -1.5, -2.5, -0.5, -0.5]


def test_accepted_needs_a_wrong_class_beside_the_rejection(refused: Refused) -> None:
    with refused("two classes or more"):
        Accepted().check(2)
