"""Normalisation to a constant norm: what a ReLU network is along a ray without it, and that files keep it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tutelage.data import Data
from tutelage.methods.causes.surgery.unit_norm import CosineClassifier, Place, UnitNorm, apply
from tutelage.models.surgery import applied_operations, reapply
from tutelage.models.tapped import Tapped
from tutelage.models.weights import load_weights, save_weights


def relu_network(*, bias: bool) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(6, 16, bias=bias), nn.ReLU(), nn.Linear(16, 16, bias=bias), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(16, 3, bias=bias)).double()


INPUTS = torch.randn(20, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
FACTORS = (0.25, 2.0, 1024.0)


def test_a_relu_network_without_biases_is_linear_along_a_ray() -> None:
    network = relu_network(bias=False)
    for factor in FACTORS:  # powers of 2, which are exact
        assert torch.equal(network(factor * INPUTS), factor * network(INPUTS))


@pytest.mark.parametrize("where", ["input", "all"])
def test_normalised_inputs_make_it_constant_along_a_ray(where: Place) -> None:
    network = apply(relu_network(bias=True), INPUTS, where=where)
    outputs = network(INPUTS)
    for factor in FACTORS:
        torch.testing.assert_close(network(factor * INPUTS), outputs, rtol=1e-5, atol=1e-6)


def test_unit_norm() -> None:
    values = UnitNorm()(torch.randn(5, 2, 3, 4))
    torch.testing.assert_close(values.flatten(1).norm(dim=1), torch.full((5,), 24**0.5))
    assert (UnitNorm()(torch.zeros(2, 3)) == 0).all()


def test_each_layer_reads_inputs_of_constant_norm(tiny_model: Callable[..., Tapped]) -> None:
    model = tiny_model()
    network = apply(model.module, torch.rand(4, 1, 8, 8), where="all")
    norms: list[torch.Tensor] = []
    for layer in (network.conv1, network.conv2, network.fc):
        layer.register_forward_hook(lambda _l, inputs, _o: norms.append(inputs[0].flatten(1).square().mean(1)))
    network.eval()(torch.rand(4, 1, 8, 8))
    assert len(norms) == 3
    for values in norms:
        torch.testing.assert_close(values, torch.ones(4))


def test_cosines_are_bounded_by_the_scale() -> None:
    network = apply(relu_network(bias=True), INPUTS, where="feature", scale=16.0)
    classifier = network[4]
    assert isinstance(classifier, CosineClassifier)
    for factor in FACTORS:
        assert network(factor * INPUTS).abs().max() <= 16 + 1e-9
    features, weight = network[:4](INPUTS), classifier.weight
    expected = [[16 * torch.cosine_similarity(h, w, dim=0).item() for w in weight] for h in features]
    torch.testing.assert_close(network(INPUTS), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("where", ["input", "all", "feature"])
def test_rebuilding_from_a_file(
    where: Place, tiny_model: Callable[..., Tapped], tiny_data: Data, tmp_path: Path
) -> None:
    images = torch.rand(6, 1, 8, 8)
    network = apply(copy.deepcopy(tiny_model(3).module), images, where=where)
    model = Tapped(network, *tiny_data.mean_std).eval()
    rebuilt = reapply(tiny_model(5).module, applied_operations(network), images)
    save_weights(tmp_path / "w.safetensors", network, {})
    load_weights(tmp_path / "w.safetensors", rebuilt)
    assert torch.equal(Tapped(rebuilt, *tiny_data.mean_std).eval()(images), model(images))
    assert torch.equal(copy.deepcopy(model)(images), model(images))


def test_invalid_settings_are_refused(refused: Any) -> None:
    with refused("input, feature, all", "'output'"):
        apply(relu_network(bias=True), INPUTS, where="output")  # type: ignore[arg-type]
    with refused("finite number above 0", -1):
        apply(relu_network(bias=True), INPUTS, where="feature", scale=-1)
