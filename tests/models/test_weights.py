"""Saving and loading weights, and weights that do not fit."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from tests.models.saving import METADATA, equal_states, refusal
from tutelage.errors import NonFiniteError, TutelageError
from tutelage.models.networks.resnet import ResNet
from tutelage.models.weights import load_weights, read_metadata, save_weights

# --- saving and loading


def test_round_trip(tmp_path: Path, network: ResNet, other: ResNet) -> None:
    path = tmp_path / "new" / "folder" / "student.safetensors"
    save_weights(path, network, METADATA)
    assert load_weights(path, other) == METADATA
    assert equal_states(network.state_dict(), other.state_dict())
    assert read_metadata(path) == METADATA
    assert os.listdir(path.parent) == ["student.safetensors"]


def test_the_file_is_plain_safetensors_with_the_keys_of_the_module(tmp_path: Path, network: ResNet) -> None:
    save_weights(tmp_path / "w.safetensors", network, METADATA)
    tensors = load_file(tmp_path / "w.safetensors")
    assert equal_states(network.state_dict(), {key: tensors[key] for key in network.state_dict()})
    assert set(tensors) == set(network.state_dict())
    with safe_open(tmp_path / "w.safetensors", framework="pt") as opened:
        assert list(opened.metadata()) == ["tutelage"]


def test_equal_weights_are_equal_files(tmp_path: Path, network: ResNet) -> None:
    save_weights(tmp_path / "a", network, METADATA)
    save_weights(tmp_path / "b", copy.deepcopy(network), dict(reversed(METADATA.items())))
    save_weights(tmp_path / "c", copy.deepcopy(network).to(memory_format=torch.channels_last), METADATA)  # type: ignore[call-overload]
    first = (tmp_path / "a").read_bytes()
    assert (tmp_path / "b").read_bytes() == first
    assert (tmp_path / "c").read_bytes() == first
    with torch.no_grad():
        network.fc.bias[0] += 1
    save_weights(tmp_path / "d", network, METADATA)
    assert (tmp_path / "d").read_bytes() != first


class Odd(nn.Module):
    """Tied weights, a view, a transposed tensor, half precision and a scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.register_buffer("whole", torch.arange(6.0))
        self.register_buffer("part", self.get_buffer("whole")[2:4])
        self.register_buffer("turned", torch.arange(6.0).view(2, 3).T)
        self.register_buffer("short", torch.rand(3).bfloat16())
        self.register_buffer("count", torch.tensor(4))


def test_shared_and_strided_tensors(tmp_path: Path) -> None:
    odd, loaded = Odd(), Odd()
    loaded.get_buffer("whole").zero_()
    save_weights(tmp_path / "w", odd, {})
    load_weights(tmp_path / "w", loaded)
    assert equal_states(odd.state_dict(), loaded.state_dict())
    assert loaded.second.weight is loaded.first.weight


class WithExtraState(nn.Linear):
    def get_extra_state(self) -> object:
        return {"epoch": 3}

    def set_extra_state(self, state: object) -> None: ...


@pytest.mark.parametrize(
    ("module", "metadata", "text"),
    [
        (nn.Linear(2, 2), {"when": object()}, "not JSON: Object of type object"),
        (nn.Linear(2, 2), {"loss": float("nan")}, "not JSON: Out of range float"),
        (WithExtraState(2, 2), {}, "WithExtraState keeps _extra_state in its state_dict"),
        (nn.LazyLinear(2), {}, "this LazyLinear cannot be saved"),
    ],
    ids=["object", "nan", "extra state", "lazy"],
)
def test_states_that_cannot_be_saved_raise(
    tmp_path: Path, module: nn.Module, metadata: dict[str, Any], text: str
) -> None:
    with pytest.raises(TutelageError) as exc_info:
        save_weights(tmp_path / "w", module, metadata)
    assert text in str(exc_info.value)
    assert "\n" not in str(exc_info.value)
    assert os.listdir(tmp_path) == []


# --- weights that do not fit


def test_another_number_of_classes_raises(tmp_path: Path, other: ResNet) -> None:
    save_weights(tmp_path / "w", ResNet(8, num_classes=100), {})
    message = refusal(tmp_path / "w", other)
    assert "are for 100 classes and this ResNet for 10" in message
    assert "fc.weight is (100, 64) in the file and (10, 64) in the model" in message
    assert message.endswith("num_classes=100")


@pytest.mark.parametrize(
    ("saved_network", "parts"),
    [
        (ResNet(8, in_channels=1), ["conv1.weight is (16, 1, 3, 3) in the file and (16, 3, 3, 3)"]),
        (
            ResNet(8, width=2, num_classes=4),
            ["conv1.weight is (32, 3, 3, 3) in the file", " and 34 more; build the model"],
        ),
        (ResNet(14), ["the file also has layer1.1.bn1.bias, ", " and 33 more; build the model"]),
        (nn.Linear(2, 2), ["lacks conv1.weight, ", " and 34 more and also has bias, weight; build"]),
    ],
    ids=["channels", "width", "deeper", "another"],
)
def test_weights_of_another_network_raise(
    tmp_path: Path, other: ResNet, saved_network: nn.Module, parts: list[str]
) -> None:
    save_weights(tmp_path / "w", saved_network, {})
    message = refusal(tmp_path / "w", other)
    assert [part for part in parts if part not in message] == []
    assert "this ResNet" in message


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("key", ["layer2.0.conv1.weight", "bn1.running_var"])
def test_non_finite_weights_raise(tmp_path: Path, network: ResNet, other: ResNet, key: str, value: float) -> None:
    network.state_dict()[key].view(-1)[-1] = value
    save_weights(tmp_path / "w", network, {})
    assert f"hold NaN or infinity in {key}: " in refusal(tmp_path / "w", other, NonFiniteError)
