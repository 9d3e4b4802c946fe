"""Reading weights files of other programs, damaged files and files that would run code."""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.models.saving import METADATA, equal_states, refusal
from tutelage.models.networks.resnet import ResNet
from tutelage.models.weights import load_weights, read_metadata, save_weights

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
    assert "would run code (tutelage.models.networks.resnet.ResNet)" in refusal(tmp_path / "w.pth", other)


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
        zipfile.ZipFile(tmp_path / "whole.pt") as archive,
        zipfile.ZipFile(tmp_path / "w.pt", "w", zipfile.ZIP_DEFLATED) as compressed_archive,
    ):
        for member in archive.infolist():
            compressed_archive.writestr(member.filename, archive.read(member))
    assert (tmp_path / "w.pt").stat().st_size < 20_000
    torch.load(tmp_path / "w.pt", weights_only=True)  # torch.load itself would unpack it
    assert "compressed entries" in refusal(tmp_path / "w.pt", module)
