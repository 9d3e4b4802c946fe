"""The operation ``simplex``: logits z / scale, z by its role, and rebuilding from a file."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tutelage.data import Data
from tutelage.methods.gccs.surgery.simplex import VERTICES, apply, set_temperature
from tutelage.models.surgery import applied_operations, reapply
from tutelage.models.tapped import Tapped
from tutelage.models.weights import load_weights, save_weights


def pixels(count: int = 6) -> torch.Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_logits_vertices_and_rebuilding(tiny_model: Callable[..., Tapped], tiny_data: Data, tmp_path: Path) -> None:
    plain = tiny_model(3).eval()
    images, keys = pixels(), plain.module.state_dict().keys()
    outputs = plain(images)
    network = apply(copy.deepcopy(plain.module), images, scale=70.0)
    model = Tapped(network, *tiny_data.mean_std).eval()
    tapped_outputs = model.tap(images, ("logits", VERTICES))
    torch.testing.assert_close(tapped_outputs["logits"], outputs / 70)
    assert torch.equal(tapped_outputs[VERTICES], outputs)
    assert torch.equal(model.tap(images, (VERTICES,))[VERTICES], outputs)
    vertices = 70 * torch.eye(4)
    assert torch.equal(model(images).argmax(1), torch.cdist(outputs, vertices).argmin(1))
    assert set(network.state_dict()) == {*keys, "fc.decision.temperature"}
    assert applied_operations(network) == [{"operation": "simplex", "scale": 70.0}]

    set_temperature(network, 0.05)
    torch.testing.assert_close(model(images), outputs / 70 / 0.05)
    assert torch.equal(model.tap(images, (VERTICES,))[VERTICES], outputs)
    assert torch.equal(model(images).argmax(1), outputs.argmax(1))

    rebuilt = reapply(tiny_model(5).module, applied_operations(network), images)
    save_weights(tmp_path / "w.safetensors", network, {})
    load_weights(tmp_path / "w.safetensors", rebuilt)
    assert torch.equal(Tapped(rebuilt, *tiny_data.mean_std).eval()(images), model(images))
    assert torch.equal(copy.deepcopy(model)(images), model(images))


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_invalid_scales_raise(scale: float, tiny_model: Callable[..., Tapped], refused: Any) -> None:
    with refused("finite number above 0", scale):
        apply(tiny_model().module, pixels(), scale=scale)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_invalid_temperatures_raise(temperature: float, tiny_model: Callable[..., Tapped], refused: Any) -> None:
    network = apply(tiny_model().module, pixels(), scale=70.0)
    with refused("finite number above 0", temperature):
        set_temperature(network, temperature)


def test_temperature_of_another_network_raises(tiny_model: Callable[..., Tapped], refused: Any) -> None:
    with refused("TinyNet has no outputs around a simplex", "method=gccs"):
        set_temperature(tiny_model().module, 2.0)


def test_applying_it_twice_raises(tiny_model: Callable[..., Tapped], refused: Any) -> None:
    network = apply(tiny_model().module, pixels(), scale=70.0)
    with refused("decision", "already"):
        apply(network, pixels(), scale=70.0)
