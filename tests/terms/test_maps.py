"""Losses of saliency maps: closed forms, plain loops, gradients and errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.losses import map_cross_entropy, map_soft_targets
from tutelage.models.outputs import Outputs
from tutelage.terms import MapCrossEntropy, MapSoftTargets

GENERATOR = torch.Generator().manual_seed(4)
Z, V, W = 2 * torch.randn(3, 3, 1, 4, 5, generator=GENERATOR, dtype=torch.float64)
Y = torch.rand(3, 4, 5, generator=GENERATOR, dtype=torch.float64)


def logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def batch_with(density: Tensor) -> Batch:
    labels = torch.stack([density, torch.zeros_like(density)], 1)
    return Batch(torch.zeros(len(density), 3, 4, 5), labels, torch.arange(len(density)), None)


def test_cross_entropy_equals_plain_loops() -> None:
    value = map_cross_entropy(Z, Y)
    for image in range(3):
        total = 0.0
        for z, y in zip(Z[image].flatten().tolist(), Y[image].flatten().tolist(), strict=True):
            total -= y * math.log(logistic(z)) + (1 - y) * math.log(1 - logistic(z))
        assert float(value[image]) == pytest.approx(total / 20, rel=1e-12)


def test_cross_entropy_of_a_fair_guess_is_log_2() -> None:
    assert map_cross_entropy(torch.zeros(2, 1, 4, 5), torch.rand(2, 4, 5)).tolist() == pytest.approx([math.log(2)] * 2)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_soft_targets_equal_plain_loops(temperature: float) -> None:
    value = map_soft_targets(Z, V, temperature)
    for image in range(3):
        total = 0.0
        for z, v in zip(Z[image].flatten().tolist(), V[image].flatten().tolist(), strict=True):
            p, q = logistic(z / temperature), logistic(v / temperature)
            total += q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
        assert float(value[image]) == pytest.approx(temperature**2 * total / 20, rel=1e-9)


def test_soft_targets_are_the_cross_entropy_with_the_teachers_map_up_to_a_constant() -> None:
    """Both have the same gradient, (s(z) - s(v)) / pixels."""
    z = Z.clone().requires_grad_()
    (by_divergence,) = torch.autograd.grad(map_soft_targets(z, V).sum(), z)
    (by_cross_entropy,) = torch.autograd.grad(map_cross_entropy(z, V[:, 0].sigmoid()).sum(), z)
    torch.testing.assert_close(by_divergence, by_cross_entropy)
    torch.testing.assert_close(by_divergence, (Z.sigmoid() - V.sigmoid()) / 20)


def test_soft_targets_of_equal_maps_are_zero() -> None:
    z = Z.clone().requires_grad_()
    value = map_soft_targets(z, Z, 3.0)
    value.sum().backward()
    assert float(value.detach().abs().max()) < 1e-15
    assert z.grad is not None
    assert float(z.grad.abs().max()) < 1e-15


def test_several_teachers_are_averaged_as_softened_probabilities() -> None:
    cohort = Outputs(None, members=(Outputs(V), Outputs(W)))
    value = MapSoftTargets(2.0)(Outputs(Z), cohort, None)
    mean = ((V / 2).sigmoid() + (W / 2).sigmoid()) / 2
    torch.testing.assert_close(value, map_soft_targets(Z, 2 * mean.logit(), 2.0))


def test_gradients_reach_the_student_alone() -> None:
    z, v, y = (values.clone().requires_grad_() for values in (Z, V, Y))
    (map_soft_targets(z, v).sum() + map_cross_entropy(z, y).sum()).backward()
    assert z.grad is not None
    assert v.grad is None
    assert y.grad is None
    assert torch.autograd.gradcheck(lambda z: map_soft_targets(z, V, 2.0), Z.clone().requires_grad_())
    assert torch.autograd.gradcheck(lambda z: map_cross_entropy(z, Y), Z.clone().requires_grad_())


def test_images_without_a_map_count_nothing() -> None:
    density = Y.clone()
    density[1] = torch.nan
    z = Z.clone().requires_grad_()
    term, batch = MapCrossEntropy(), batch_with(density)
    value = term(Outputs(z), None, batch)
    torch.testing.assert_close(value.detach()[[0, 2]], map_cross_entropy(Z, Y)[[0, 2]])
    assert float(value[1].detach()) == 0
    value.sum().backward()
    assert z.grad is not None
    assert bool(z.grad.isfinite().all())
    assert float(z.grad[1].abs().max()) == 0
    torch.testing.assert_close(term.mean(Outputs(Z), None, batch), map_cross_entropy(Z, Y)[[0, 2]].mean())
    assert not term.teacher_roles


def test_terms_take_plain_tensors() -> None:
    labels = torch.stack([Y, torch.zeros_like(Y)], 1)
    torch.testing.assert_close(MapCrossEntropy()(Z, labels), map_cross_entropy(Z, Y).mean())
    torch.testing.assert_close(MapSoftTargets(2.0)(Z, V), map_soft_targets(Z, V, 2.0).mean())


def test_teachers_map_of_another_size_is_scaled() -> None:
    constant = torch.full((3, 1, 2, 2), 0.7, dtype=torch.float64)
    torch.testing.assert_close(map_soft_targets(Z, constant), map_soft_targets(Z, torch.full_like(Z, 0.7)))


@pytest.mark.parametrize(
    ("loss", "pieces"),
    [
        (lambda: map_cross_entropy(Z.expand(-1, 2, -1, -1), Y), ("(B, 1, H, W)", "(3, 2, 4, 5)")),
        (lambda: map_cross_entropy(Z, Y[:, :3]), ("(3, 4, 5)", "(3, 3, 5)")),
        (lambda: map_soft_targets(Z, V[:, 0]), ("(B, 1, H, W)", "(3, 4, 5)")),
        (lambda: MapSoftTargets(0.0), ("temperature", "0.0")),
    ],
)
def test_other_shapes_are_refused(loss: Callable[[], Any], pieces: tuple[str, ...], refused: Any) -> None:
    with refused(*pieces):
        loss()
