"""Packed files: integers in bytes, the size of a file, the weights that are read back, damaged files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.models.branching import zoo_network
from tutelage.models.packed import bit_counts, save_packed
from tutelage.models.packing import PACKED, SPARSE, index_width, pack, unpack
from tutelage.models.quantised import quantised_layers
from tutelage.models.surgery import mask
from tutelage.models.surgery.mask import fixed_zeros
from tutelage.models.surgery.quantise import apply
from tutelage.models.weights import load_weights, read_metadata, read_state, save_weights

IMAGES = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def network(groups: int = 8, bits: int = 3, activation_bits: int = 0) -> nn.Module:
    torch.manual_seed(0)
    result = apply(zoo_network("resnet8x0.5")(), IMAGES, bits=bits, groups=groups, activation_bits=activation_bits)
    with torch.no_grad():
        for layer in quantised_layers(result).values():
            layer.weight_gain.uniform_(0.7, 1.3)
    return result.eval()


@pytest.mark.parametrize("bits", range(1, 9))
def test_integers_in_bytes(bits: int) -> None:
    values = torch.randint(2**bits, (101,), generator=torch.Generator().manual_seed(bits))
    packed = pack(values, bits)
    assert packed.dtype == torch.uint8
    assert len(packed) == -(-101 * bits // 8)
    assert torch.equal(unpack(packed, bits, 101), values)
    expected = sum(value << bits * place for place, value in enumerate(values.tolist()))
    assert int.from_bytes(bytes(packed.tolist()), "little") == expected


@pytest.mark.parametrize("groups", [1, 5, 8, 1000])
@pytest.mark.parametrize("activation_bits", [0, 6])
def test_file_has_few_bits_and_gives_the_same_weights(groups: int, activation_bits: int, tmp_path: Path) -> None:
    original = network(groups, activation_bits=activation_bits)
    counts, file = bit_counts(original), tmp_path / "p.safetensors"
    size = save_packed(file, original, {"model": "x"})
    assert size == file.stat().st_size
    header = int.from_bytes(file.read_bytes()[:8], "little") + 8
    content = (size - header) * 8
    padding = 8 * 2 * len(quantised_layers(original)) + 64  # a part of a byte for each tensor, and alignment
    assert counts["total"] <= content <= counts["total"] + padding
    assert content < counts["float"] / 5

    other = network(groups, bits=3, activation_bits=activation_bits)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.uniform_()
    assert load_weights(file, other)["model"] == "x"
    expected = original(IMAGES).detach()
    assert torch.equal(other(IMAGES).detach(), expected)
    for name, layer in quantised_layers(other).items():
        assert torch.equal(layer.weight, quantised_layers(original)[name].quantised_weight())
        assert torch.equal(layer.codes(), quantised_layers(original)[name].codes())

    # A second file of what was read is the same, and so is an ordinary file of the rounded weights.
    save_packed(tmp_path / "again.safetensors", other, {"model": "x"})
    assert (tmp_path / "again.safetensors").read_bytes() == file.read_bytes()
    for layer in quantised_layers(original).values():
        layer.round_weights()
    save_weights(tmp_path / "plain.safetensors", original, {})
    ordinary, packed = (read_state(tmp_path / f"{name}.safetensors")[0] for name in ("plain", "p"))
    assert ordinary.keys() == packed.keys()
    assert all(torch.equal(value, packed[key]) for key, value in ordinary.items())


def test_counts_of_bits() -> None:
    layers = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Flatten(), nn.Linear(6 * 36, 5, bias=False), nn.Linear(5, 4))
    apply(layers, IMAGES, bits=3, groups=4, edge_bits=7)
    counts = bit_counts(layers)
    sizes = 6 * 9, 6 * 36 * 5, 5 * 4
    assert counts["weights"] == sizes[0] * 7 + sizes[1] * 3 + sizes[2] * 7
    assert counts["scales"] == 3 * 4 * 32
    assert counts["index"] == 6 * 2 + 5 * 2
    assert counts["rest"] == (6 + 4) * 32
    assert counts["total"] == sum(counts[name] for name in ("weights", "scales", "index", "rest"))
    assert counts["float"] == (sum(sizes) + 6 + 4) * 32
    assert [index_width(groups, 8) for groups in (1, 2, 3, 4, 5, 8)] == [0, 1, 2, 2, 3, 0]
    plain = bit_counts(nn.Linear(3, 2))
    assert plain["total"] == plain["float"] == plain["rest"] == 8 * 32


def masked() -> nn.Module:
    """Three masked layers: one of five weights for each pair, one of all its weights, and one of none."""
    torch.manual_seed(0)
    result = nn.Sequential(nn.Conv2d(2, 7, 3), nn.Conv2d(7, 3, (1, 5)), nn.Flatten(), nn.Linear(6, 5), nn.Linear(5, 4))
    for layer, rows, columns, keep in (
        ("1", [2, 1], [3, 4], [0, 1, 1, 0]),
        ("3", [5], [6], [1]),
        ("4", [4], [5], [0]),
    ):
        mask.apply(result, torch.rand(1), layer=layer, outputs=rows, inputs=columns, keep=keep)
    return result


def test_zeros_of_masks_are_not_in_the_file(tmp_path: Path) -> None:
    original, file = masked(), tmp_path / "p.safetensors"
    size = save_packed(file, original, {"model": "x"})
    assert size == file.stat().st_size
    stored = load_file(file)
    assert len(stored["1.weight_values"]) == 5 * (2 * 4 + 1 * 3)
    assert [len(stored[f"{layer}.weight_values"]) for layer in "34"] == [30, 0]
    assert [len(stored[f"{layer}.weight_mask"]) for layer in "134"] == [3, 4, 3]  # 21, 30 and 20 bits
    assert fixed_zeros(original) == 5 * (2 * 3 + 1 * 4) + 20
    save_weights(tmp_path / "plain.safetensors", original, {})
    ordinary, packed = (read_state(tmp_path / f"{name}.safetensors")[0] for name in ("plain", "p"))
    assert ordinary.keys() == packed.keys()
    assert all(torch.equal(value, packed[key]) for key, value in ordinary.items())
    other = masked()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.fill_(1)
    assert load_weights(file, other)["model"] == "x"
    assert all(torch.equal(value, ordinary[key]) for key, value in other.state_dict().items())


@pytest.mark.parametrize(
    "damage",
    [
        lambda state, layers: state.pop("1.weight_mask"),
        lambda state, layers: state.update({"1.weight_mask": state["1.weight_mask"][:-1]}),
        lambda state, layers: state.update({"1.weight_mask": state["1.weight_mask"].float()}),
        lambda state, layers: state.update({"1.weight_mask": ~state["1.weight_mask"]}),
        lambda state, layers: state.update({"1.weight_values": state["1.weight_values"][1:]}),
        lambda state, layers: layers.update({"1": [7, 4, 1, 5]}),
        lambda state, layers: layers.update({"1": [3]}),
        lambda state, layers: layers.update({"1": [2**40, 2**40, 1, 5]}),
        lambda state, layers: layers.update({"1": "3751"}),
    ],
)
def test_damaged_files_of_masked_layers_are_refused(damage: Any, tmp_path: Path, refused: Any) -> None:
    file = tmp_path / "p.safetensors"
    save_packed(file, masked(), {})
    state, metadata = load_file(file), read_metadata(file)
    damage(state, metadata[SPARSE])
    save_file(state, file, {"tutelage": json.dumps(metadata)})
    with refused("p.safetensors", "damaged", "save them again"):
        read_state(file)


def test_networks_without_quantised_layers_are_refused(tmp_path: Path, refused: Any) -> None:
    with refused("nothing can be packed", "Linear"):
        save_packed(tmp_path / "p.safetensors", nn.Linear(3, 2), {})


@pytest.mark.parametrize(
    "damage",
    [
        lambda state, layers: state.pop("conv1.weight_codes"),
        lambda state, layers: state.pop("layer1.0.conv1.weight_group_codes"),
        lambda state, layers: state.update({"conv1.weight_codes": state["conv1.weight_codes"][:-1]}),
        lambda state, layers: state.update({"layer1.0.conv1.weight_group_codes": torch.full((3,), 255).byte()}),
        lambda state, layers: layers["conv1"].update(bits=3),
        lambda state, layers: layers["conv1"].update(bits="8"),
        lambda state, layers: layers["conv1"].update(shape=[2**40, 2**40]),
        lambda state, layers: layers["conv1"].update(shape=[-8, -9]),
        lambda state, layers: layers["conv1"].pop("shape"),
        lambda state, layers: layers.update(nowhere={"bits": 3, "shape": [3, 3]}),
    ],
)
def test_damaged_files_are_refused(damage: Any, tmp_path: Path, refused: Any) -> None:
    file = tmp_path / "p.safetensors"
    save_packed(file, network(groups=6), {"model": "x"})
    state, metadata = load_file(file), read_metadata(file)
    damage(state, metadata[PACKED])
    save_file(state, file, {"tutelage": json.dumps(metadata)})
    with refused("p.safetensors", "damaged", "save them again"):
        read_state(file)
    save_file(state, file, {"tutelage": json.dumps({PACKED: [1]})})
    with refused("damaged"):
        read_state(file)
