"""Data of known geometry: norms, distances to the optimal boundary, Bayes errors, and attacks that find them."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tutelage.attacks import DEN, FoolboxAttack
from tutelage.methods.causes.geometry import Reference, blocks, gaussians, spheres, subspace


def test_points_are_on_their_sphere() -> None:
    for size in (2, 10, 500):
        reference = spheres(size, 1.3, train=200, test=50)
        for split in reference.data.splits.values():
            norms = (split.inputs - 0.5).double().norm(dim=1) / reference.unit  # type: ignore[operator]
            torch.testing.assert_close(norms, 1 + 0.3 * split.labels.double(), atol=2e-5, rtol=0)
            assert split.labels.float().mean() == 0.5
            distances = reference.distance(split.inputs) / reference.unit  # type: ignore[arg-type]
            torch.testing.assert_close(distances, torch.full_like(distances, 0.15), atol=2e-5, rtol=0)


@pytest.mark.parametrize("make", [partial(gaussians, 20), partial(subspace, 20, 3, noise=0.01)])
def test_gaussians_have_their_bayes_error_and_moments(make: Any) -> None:
    reference: Reference = make(mean=1.0, train=100, test=20_000)
    inputs, labels = reference.data.test.inputs, reference.data.test.labels
    error = float((reference.classifier(inputs).argmax(1) != labels).double().mean())
    assert reference.bayes_error == pytest.approx(0.158655, abs=1e-6)  # Phi(-1)
    assert error == pytest.approx(reference.bayes_error, abs=3 * math.sqrt(0.16 * 0.84 / 20_000))
    values = (inputs - 0.5).double() / reference.unit
    difference = values[labels == 1].mean(0) - values[labels == 0].mean(0)
    assert float(difference.norm()) == pytest.approx(2, abs=0.1)
    spectrum = torch.linalg.eigvalsh(values[labels == 0].T.cov())
    inside = 3 if "inside" in repr(make) or len(make.args) == 2 else 20
    assert spectrum[-inside:].min() > 0.9
    assert spectrum[: 20 - inside].max() < 2e-4 if inside < 20 else True


def test_a_step_by_the_distance_reaches_the_boundary() -> None:
    for reference in (spheres(10), gaussians(10), subspace(10, 2), blocks()):
        inputs = reference.data.test.inputs[:20].double().requires_grad_()  # type: ignore[union-attr]
        score = reference.classifier(inputs)[:, 1]
        (gradient,) = torch.autograd.grad(score.sum(), inputs)
        step = reference.distance(inputs)[:, None] * nn.functional.normalize(gradient, dim=1)
        there = reference.classifier(inputs - score.sign()[:, None] * step)[:, 1]
        assert there.abs().max() < 1e-5 * score.abs().max()


def test_blocks_have_their_distances() -> None:
    reference = blocks(10, 3, 0.4)
    inputs, labels = reference.data.test.inputs, reference.data.test.labels
    one, other = inputs[labels == 0][0], inputs[labels == 1][0]
    patch = torch.zeros(10, 10, dtype=torch.bool)
    patch[:3, :3] = True
    difference = (other - one)[patch.flatten()]
    assert float(difference.norm()) == pytest.approx(0.4 * 3, rel=1e-6)
    assert float(difference.abs().max()) == pytest.approx(0.4, rel=1e-6)
    torch.testing.assert_close(reference.distance(inputs), torch.full((500,), 0.6))


def linear(weight: Tensor, bias: float) -> nn.Module:
    layer = nn.Linear(len(weight), 2)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([-weight, weight]) / 2)
        layer.bias.copy_(torch.tensor([-bias, bias]) / 2)
    return layer


NEAREST = DEN(objective="logits", norm="l2", step_size=0.002, l1=0.0, l2=0.0, extra=200, steps=800)


def test_an_attack_finds_the_distance_of_a_linear_classifier() -> None:
    """|w x + b| / ||w||, within 1 per cent; the optimal classifier of the data has ratio 1."""
    reference = gaussians(2, train=50, test=40)
    inputs = reference.data.test.inputs
    weight = torch.tensor([1.0, -0.5])
    model = linear(weight, 0.05 - float(weight.sum()) / 2)
    labels = model(inputs).argmax(1)
    nearest = NEAREST.replace(l2=1.0)(model, inputs, labels)
    true = (inputs @ weight + 0.05 - weight.sum() / 2).abs() / weight.norm()
    ratio = (nearest - inputs).norm(dim=1) / true
    assert (ratio >= 1 - 1e-3).all()
    assert float(ratio.median()) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("make", [partial(spheres, 2), partial(spheres, 50), partial(gaussians, 20), blocks])
def test_the_optimal_classifier_has_ratio_1(make: Any) -> None:
    pytest.importorskip("foolbox")
    reference: Reference = make(train=10, test=20)
    inputs, labels = reference.data.test.inputs, reference.data.test.labels
    right = reference.classifier(inputs).argmax(1) == labels
    attack = FoolboxAttack.named("DDNAttack", {"steps": 200, "init_epsilon": 0.02})
    nearest = attack(reference.classifier, inputs[right], labels[right], torch.Generator().manual_seed(0))
    distance = reference.distance(inputs[right])
    torch.testing.assert_close((nearest - inputs[right]).norm(dim=1), distance, rtol=0.02, atol=1e-3)


def test_the_seed_draws_the_samples() -> None:
    first, again, other = (spheres(3, train=10, test=4, seed=seed).data.train.inputs for seed in (0, 0, 1))
    assert torch.equal(first, again)  # type: ignore[arg-type]
    assert not torch.equal(first, other)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "pieces"),
    [
        (lambda: spheres(3, 1.0), ("above 1", 1.0)),
        (lambda: subspace(3, 4), ("1 to 3", 4)),
        (lambda: gaussians(3, -1.0), ("above 0", -1.0)),
        (lambda: blocks(3, 4), ("1 to 3", 4)),
        (lambda: blocks(amplitude=1.5), ("(0, 1]", 1.5)),
    ],
)
def test_impossible_data_are_refused(make: Any, pieces: Any, refused: Any) -> None:
    with refused(*pieces):
        make()
