"""Fronts: hiding half of each image before the first layer, and rebuilding from a file."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tutelage.data import Data
from tutelage.methods.occlusion.fronts.occlude import normalised_black, occlude
from tutelage.models import fronts
from tutelage.models.attach import input_layer
from tutelage.models.surgery import applied_operations, reapply, record_operations
from tutelage.models.surgery.front import apply
from tutelage.models.tapped import Tapped
from tutelage.models.weights import load_weights, save_weights
from tutelage.parts import import_part

HALF: dict[str, Any] = {"kind": "occlude", "hidden": "upper", "fill": [0.0]}


def pixels(*shape: int) -> torch.Tensor:
    return torch.rand(*(shape or (6, 1, 8, 8)), generator=torch.Generator().manual_seed(0)) + 0.01


@pytest.mark.parametrize("height", [8, 7, 2])
def test_each_row_is_hidden_by_exactly_one_half(height: int) -> None:
    images = pixels(3, 2, height, 5)
    upper, lower = occlude(images, "upper"), occlude(images, "lower")
    assert (upper[:, :, : height // 2] == 0).all()
    assert torch.equal(upper[:, :, height // 2 :], images[:, :, height // 2 :])
    assert torch.equal(lower[:, :, : height // 2], images[:, :, : height // 2])
    assert (lower[:, :, height // 2 :] == 0).all()
    assert torch.equal(upper + lower, images)


def test_the_hidden_half_is_black_after_normalisation() -> None:
    """It equals the normalised value of pixels of 0 in each channel."""
    images = pixels(2, 3, 6, 6)
    mean, std = torch.tensor([0.2, 0.5, 0.7]), torch.tensor([0.1, 0.2, 0.4])
    inputs_of_network: list[torch.Tensor] = []
    network = nn.Sequential(nn.Conv2d(3, 4, 1))
    network[0].register_forward_pre_hook(lambda _, inputs: inputs_of_network.append(inputs[0]))
    black_model = Tapped(network, mean.tolist(), std.tolist())
    black_model(occlude(images, "lower"))
    fronted = nn.Sequential(nn.Conv2d(3, 4, 1))
    apply(fronted, images, kind="occlude", hidden="lower", fill=normalised_black(mean, std, 3))
    fronted[0].register_forward_pre_hook(lambda _, inputs: inputs_of_network.append(inputs[0]))
    Tapped(fronted, mean.tolist(), std.tolist())(images)
    assert torch.equal(inputs_of_network[0], inputs_of_network[1])
    assert normalised_black(torch.tensor([0.5]), torch.tensor([0.25]), 3) == [-2.0, -2.0, -2.0]


def nested() -> nn.Module:
    return nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), nn.Flatten(), nn.Linear(72, 4))


@pytest.mark.parametrize("kind", ["a module", "nn.Sequential"])
def test_the_network_receives_the_output_of_the_front(kind: str, tiny_model: Callable[..., Tapped]) -> None:
    network = (tiny_model().module if kind == "a module" else nested()).eval()
    plain, keys = copy.deepcopy(network), list(network.state_dict())
    apply(network, pixels(), **HALF)
    assert torch.equal(network(pixels()), plain(occlude(pixels())))
    assert list(network.state_dict()) == keys
    assert applied_operations(network) == [{"operation": "front", **HALF}]
    assert torch.equal(copy.deepcopy(network)(pixels()), network(pixels()))


def test_it_is_rebuilt_from_a_file(tiny_model: Callable[..., Tapped], tiny_data: Data, tmp_path: Path) -> None:
    network = apply(tiny_model(3).module, pixels(), **HALF).eval()
    save_weights(tmp_path / "w.safetensors", network, {"surgery": applied_operations(network)})
    rebuilt = reapply(tiny_model(5).module, applied_operations(network), pixels())
    load_weights(tmp_path / "w.safetensors", rebuilt)
    assert torch.equal(rebuilt.eval()(pixels()), network(pixels()))


def test_code_compiled_before_does_not_skip_the_front(tiny_model: Callable[..., Tapped]) -> None:
    torch.compiler.reset()
    model = tiny_model().eval()
    model.compile(backend="eager")
    logits_without_front = model.tap(pixels())["logits"]
    model.uncompile()
    apply(model.module, pixels(), **HALF)
    model = model.rewrapped()
    eager = model.tap(pixels())["logits"]
    model.compile(backend="eager")
    assert torch.equal(model.tap(pixels())["logits"], eager)
    assert not torch.equal(eager, logits_without_front)
    torch.compiler.reset()


def test_input_layer(tiny_model: Callable[..., Tapped], refused: Any) -> None:
    assert input_layer(tiny_model().module) == ""
    assert input_layer(nested()) == "0.0"
    relu = nn.ReLU()
    with refused("first layer of Sequential, '0', is in it twice", "copy"):
        input_layer(nn.Sequential(relu, nn.Flatten(), relu))
    with refused("Sequential is empty"):
        input_layer(nn.Sequential())


@pytest.mark.parametrize(
    ("settings", "pieces"),
    [
        ({"kind": "mirror"}, ["front", "mirror", "occlude"]),
        ({"hidden": "left"}, ["upper or lower", "left"]),
        ({"fill": [0.0, 0.0]}, ["1 finite numbers", "[0.0, 0.0]"]),
        ({"fill": [float("nan")]}, ["finite"]),
        ({"fill": 0.5}, ["1 finite numbers", "0.5"]),
    ],
)
def test_invalid_settings_raise(
    settings: dict[str, Any], pieces: list[str], tiny_model: Callable[..., Tapped], refused: Any
) -> None:
    with refused(*pieces):
        apply(tiny_model().module, pixels(), **{**HALF, **settings})


def test_inputs_other_than_images_and_a_second_front_raise(tiny_model: Callable[..., Tapped], refused: Any) -> None:
    with refused("shape (6,)", "two rows"):
        apply(nn.Sequential(nn.Linear(6, 2)), torch.rand(2, 6), **HALF)
    network = apply(tiny_model().module, pixels(), **HALF)
    with refused("TinyNet has a submodule 'front_occlude' already"):
        apply(network, pixels(), **HALF)


def test_kinds_are_found_by_name() -> None:
    assert "occlude" in fronts.kinds()
    assert all(callable(import_part("fronts", kind).build) for kind in fronts.kinds())


@pytest.mark.parametrize("value", [None, {"a": 1}, [[1.0]], [None], [0.0] * 5000])
def test_settings_other_than_text_numbers_and_flat_lists_raise(
    value: Any, tiny_model: Callable[..., Tapped], refused: Any
) -> None:
    network = tiny_model().module
    with refused("operation 'front' cannot be repeated", "'fill'", "a list of at most 4096"):
        reapply(network, [{"operation": "front", "kind": "occlude", "hidden": "upper", "fill": value}], pixels())
    record_operations(network, [])
