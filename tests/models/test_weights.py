"""Saving and loading weights, damaged files and weights that do not fit."""

from __future__ import annotations

import copy
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tutelage.errors import NonFiniteError, TutelageError
from tutelage.models.resnet import ResNet
from tutelage.models.weights import load_weights, read_metadata, save_weights

METADATA = {"model": "resnet8", "classes": ["cat", "dög"], "epochs": 3, "z": None, "a": {"y": 1.5, "x": True}}


@pytest.fixture
def network() -> ResNet:
    torch.manual_seed(0)
    network = ResNet(8)
    network(torch.rand(4, 3, 8, 8))  # updates the running statistics
    return network


@pytest.fixture
def other() -> ResNet:
    torch.manual_seed(1)
    return ResNet(8)


def equal_states(state: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(state) == list(other) and all(
        value.dtype == other[key].dtype and torch.equal(value, other[key]) for key, value in state.items()
    )


def refusal(path: Path, module: nn.Module, kind: type[TutelageError] = TutelageError) -> str:
    """The one-line error message, which names the file; the module does not change."""
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(kind) as caught:
        load_weights(path, module)
    message = str(caught.value)
    assert repr(str(path)) in message
    assert "\n" not in message
    assert equal_states(before, module.state_dict())
    return message


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
    read = load_file(tmp_path / "w.safetensors")
    assert equal_states(network.state_dict(), {key: read[key] for key in network.state_dict()})
    assert set(read) == set(network.state_dict())
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
    with pytest.raises(TutelageError) as caught:
        save_weights(tmp_path / "w", module, metadata)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


# --- files of other programs


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_files_of_torch_save_are_read(
    tmp_path: Path,
    network: ResNet,
    other: ResNet,
    wrap: Callable[[dict[str, Tensor]], dict[str, Any]],
    prefix: str,
) -> None:
    path = tmp_path / "w.pth"
    torch.save(wrap({prefix + key: value for key, value in network.state_dict().items()}), path)
    assert load_weights(path, other) == {}
    assert equal_states(network.state_dict(), other.state_dict())
    assert read_metadata(path) == {}


def test_a_safetensors_file_without_metadata(tmp_path: Path, network: ResNet, other: ResNet) -> None:
    path = tmp_path / "misnamed.pt"
    save_file(network.state_dict(), path, metadata={"format": "pt"})
    assert load_weights(path, other) == {}
    assert equal_states(network.state_dict(), other.state_dict())


def test_a_prefix_of_the_modules_own_keys_remains(tmp_path: Path) -> None:
    wrapped, loaded = nn.DataParallel(nn.Linear(2, 2)), nn.DataParallel(nn.Linear(2, 2))
    save_weights(tmp_path / "w", wrapped, {})
    load_weights(tmp_path / "w", loaded)
    assert equal_states(wrapped.state_dict(), loaded.state_dict())


def test_old_files_without_num_batches_tracked(tmp_path: Path, network: ResNet, other: ResNet) -> None:
    state = {key: value for key, value in network.state_dict().items() if "num_batches" not in key}
    torch.save(state, tmp_path / "w.pth")
    load_weights(tmp_path / "w.pth", other)
    assert torch.equal(other.layer3[0].get_buffer("bn2.running_var"), state["layer3.0.bn2.running_var"])


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.marker}'",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_would_run_code_raises(tmp_path: Path, other: ResNet, zipped: bool) -> None:
    path, marker = tmp_path / "w.pth", tmp_path / "it ran"
    torch.save({"model": Hostile(marker)}, path, _use_new_zipfile_serialization=zipped)
    message = refusal(path, other)
    assert "would run code" in message
    assert "system" in message
    assert "convert its state_dict to safetensors" in message
    assert not marker.exists()


def test_a_pickled_network_raises(tmp_path: Path, network: ResNet, other: ResNet) -> None:
    torch.save(network, tmp_path / "w.pth")
    assert "would run code (tutelage.models.resnet.ResNet)" in refusal(tmp_path / "w.pth", other)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (
            {"weights": {"a": torch.ones(1)}, "epoch": 3},
            "holds a mapping of 'weights', 'epoch' and no state_dict",
        ),
        (torch.ones(3), "holds Tensor and no state_dict"),
        ({}, "no state_dict"),
    ],
    ids=["mapping", "tensor", "empty"],
)
def test_a_pickle_without_a_state_dict_raises(tmp_path: Path, other: ResNet, content: object, text: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    message = refusal(tmp_path / "w.pth", other)
    assert text in message
    assert "save model.state_dict()" in message


# --- damaged files


def flipped_header(data: bytes) -> bytes:
    return data[:8] + b"[" + data[9:]


def bad_metadata(_: bytes) -> bytes:
    header = b'{"__metadata__":{"tutelage":"{oops"}}'
    return struct.pack("<Q", len(header)) + header


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data[:20],
        lambda data: b"",
        lambda data: b"not weights at all\n" * 9,
        lambda data: b"\xff" * 8 + data[8:],
        lambda data: data + b"more",
        flipped_header,
        bad_metadata,
    ],
    ids=["last byte", "half", "header", "empty", "text", "length", "longer", "no brace", "metadata"],
)
def test_damaged_safetensors_raise(
    tmp_path: Path, network: ResNet, other: ResNet, damage: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, network, METADATA)
    path.write_bytes(damage(path.read_bytes()))
    assert "is not a complete weights file" in refusal(path, other)


def test_metadata_that_is_no_object_raises(tmp_path: Path, other: ResNet) -> None:
    save_file(other.state_dict(), tmp_path / "w", metadata={"tutelage": "[1]"})
    assert "expected a JSON object" in refusal(tmp_path / "w", other)


@pytest.mark.parametrize("keep", [0.5, 0.99])
@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_files_of_torch_save_raise(
    tmp_path: Path, network: ResNet, other: ResNet, keep: float, zipped: bool
) -> None:
    path = tmp_path / "w.pt"
    torch.save(network.state_dict(), path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    refusal(path, other)


def test_a_missing_file_raises(tmp_path: Path, other: ResNet) -> None:
    assert "No such file or directory; check the path" in refusal(tmp_path / "w", other)
    assert "check the path" in refusal(tmp_path, other)


# --- weights that do not fit


def test_another_number_of_classes_raises(tmp_path: Path, other: ResNet) -> None:
    save_weights(tmp_path / "w", ResNet(8, num_classes=100), {})
    message = refusal(tmp_path / "w", other)
    assert "are for 100 classes and this ResNet for 10" in message
    assert "fc.weight is (100, 64) in the file and (10, 64) in the model" in message
    assert message.endswith("num_classes=100")


@pytest.mark.parametrize(
    ("saved", "parts"),
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
def test_weights_of_another_network_raise(tmp_path: Path, other: ResNet, saved: nn.Module, parts: list[str]) -> None:
    save_weights(tmp_path / "w", saved, {})
    message = refusal(tmp_path / "w", other)
    assert [part for part in parts if part not in message] == []
    assert "this ResNet" in message


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("key", ["layer2.0.conv1.weight", "bn1.running_var"])
def test_non_finite_weights_raise(tmp_path: Path, network: ResNet, other: ResNet, key: str, value: float) -> None:
    network.state_dict()[key].view(-1)[-1] = value
    save_weights(tmp_path / "w", network, {})
    assert f"hold NaN or infinity in {key}: " in refusal(tmp_path / "w", other, NonFiniteError)


# --- other tensor types and compressed archives


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda weight: weight.to_sparse(), "not dense"),
        (lambda weight: weight.to_sparse_csr(), "not dense"),
        (lambda weight: torch.nested.nested_tensor(list(weight)), "not dense"),
        (lambda weight: torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8), "quantized"),
        (lambda weight: weight.to("meta"), "empty (meta)"),
        (lambda weight: weight + 1j, "complex64"),
        (lambda weight: (weight * 100).to(torch.int8), "int8"),
        (lambda weight: weight > 0, "bool"),
    ],
    ids=["sparse", "csr", "nested", "quantized", "meta", "complex", "int8", "bool"],
)
def test_tensors_that_are_not_dense_or_of_other_types_raise(
    tmp_path: Path, change: Callable[[Tensor], Tensor], text: str
) -> None:
    module = nn.Linear(3, 2)
    torch.save({"weight": change(torch.rand(2, 3)), "bias": torch.zeros(2)}, tmp_path / "w.pt")
    assert text in refusal(tmp_path / "w.pt", module)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_all_float_types_are_read(tmp_path: Path, dtype: torch.dtype) -> None:
    module = nn.Linear(2, 1)
    torch.save({"weight": torch.tensor([[0.5, -2.0]]).to(dtype), "bias": torch.zeros(1)}, tmp_path / "w.pt")
    load_weights(tmp_path / "w.pt", module)
    assert module.weight.tolist() == [[0.5, -2.0]]


def test_a_compressed_archive_raises(tmp_path: Path) -> None:
    module = nn.Linear(1000, 1000)
    torch.save({"weight": torch.zeros(1000, 1000), "bias": torch.zeros(1000)}, tmp_path / "whole.pt")
    with (
        zipfile.ZipFile(tmp_path / "whole.pt") as whole,
        zipfile.ZipFile(tmp_path / "w.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for member in whole.infolist():
            packed.writestr(member.filename, whole.read(member))
    assert (tmp_path / "w.pt").stat().st_size < 20_000
    torch.load(tmp_path / "w.pt", weights_only=True)  # torch.load itself would unpack it
    assert "compressed entries" in refusal(tmp_path / "w.pt", module)
