"""Groups of units: which can be removed, which layers change with them, and that nothing else changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.networks import ImageNetResNet, sequential_network, with_statistics
from tutelage.evaluation.cost import parameters
from tutelage.models.groups import drop, group_of, groups, prunable
from tutelage.models.networks.wrn import WRN
from tutelage.models.surgery import applied_operations, reapply
from tutelage.models.surgery.resize import apply
from tutelage.models.weights import load_weights, save_weights
from tutelage.models.zoo import build

EXAMPLE = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Branches(nn.Module):
    """A concatenation, a sum, a shared consumer and a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 3, 1), nn.Conv2d(1, 4, 3, padding=1)
        self.joined, self.also = nn.Conv2d(7, 5, 3, padding=1), nn.Conv2d(7, 5, 1)
        self.depthwise, self.pointwise = nn.Conv2d(5, 5, 3, padding=1, groups=5), nn.Conv2d(5, 6, 1)
        self.norm = nn.GroupNorm(2, 6)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(torch.cat([self.left(x), self.right(x)], 1))
        x = F.relu(self.joined(x)) + self.also(x)
        x = self.norm(self.pointwise(self.depthwise(x)))
        return self.fc(F.relu(x).mean((2, 3)))  # type: ignore[no-any-return]


class Squeezed(nn.Module):
    """Channels scaled by a squeeze-and-excitation branch, a consumer of two producers, tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.down, self.up = nn.Linear(6, 4), nn.Linear(4, 6)
        self.left, self.right, self.shared = nn.Conv2d(6, 5, 1), nn.Conv2d(6, 5, 1), nn.Conv2d(5, 4, 1)
        self.tied, self.again = nn.Linear(4, 4), nn.Linear(4, 4)
        self.again.weight = self.tied.weight
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        x = x * self.up(F.relu(self.down(x.mean((2, 3))))).sigmoid()[:, :, None, None]
        x = self.shared(F.relu(self.left(x))) * self.shared(F.relu(self.right(x)))
        return self.fc(self.again(self.tied(x.mean((2, 3)))))  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    """Groups, shuffled channels, a recurrent layer, a scale: only the units of ``shuffled`` can be removed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.grouped = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 6, 1, groups=2)
        self.second, self.shuffled = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 4, 1)
        self.third, self.scale = nn.Conv2d(4, 4, 1), nn.Parameter(torch.ones(4, 1, 1))
        self.last = nn.Conv2d(4, 5, 1)
        self.lstm = nn.LSTM(5, 4, batch_first=True)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.grouped(self.first(x)))
        x = self.shuffled(x.view(len(x), 2, 3, *x.shape[2:]).transpose(1, 2).flatten(1, 2))
        x = self.last(self.third(x) * self.scale)
        return self.fc(self.lstm(x.flatten(2).transpose(1, 2))[0].mean(1))  # type: ignore[no-any-return]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.mlp = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))
        self.tied = nn.Linear(8, 8)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(1, 2))
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = x + self.mlp(self.norm(x))
        x = self.tied(torch.relu(self.tied(x)))
        return self.head(torch.relu(self.normed(x)).mean(1))  # type: ignore[no-any-return]


def test_groups_of_sequential_network() -> None:
    network = sequential_network()
    assert prunable(network, EXAMPLE) == ["0", "4", "9"]
    first, second, third_group = (group_of(network, layer, EXAMPLE) for layer in ("0", "4", "9"))
    assert first
    assert second
    assert third_group
    assert (first.units, list(first.between), list(first.consumers)) == (5, ["1"], ["4"])
    assert torch.equal(first.between["1"], torch.arange(5)[:, None])
    assert (second.units, list(second.between), list(second.consumers)) == (6, ["7"], ["9"])
    assert torch.equal(second.consumers["9"], torch.arange(24).view(6, 4))  # 2 x 2 positions of each channel
    assert (third_group.units, dict(third_group.between), list(third_group.consumers)) == (7, {}, ["11"])


def test_concatenated_branches_are_alone_and_summed_ones_are_coupled() -> None:
    network = Branches()
    assert prunable(network, EXAMPLE) == ["left", "right"]
    summed = groups(network, EXAMPLE)[-1]
    assert {name: rows.squeeze(1).tolist() for name, rows in summed.layers.items()} == {
        "joined": [0, 1, 2, 3, 4],
        "also": [0, 1, 2, 3, 4],
    }
    assert (list(summed.between), list(summed.consumers)) == (["depthwise"], ["pointwise"])
    group = group_of(network, "right", EXAMPLE)
    assert group
    assert {name: columns.squeeze(1).tolist() for name, columns in group.consumers.items()} == {
        "joined": [3, 4, 5, 6],
        "also": [3, 4, 5, 6],
    }


def test_layers_that_mix_units_are_not_prunable() -> None:
    assert prunable(Attention(), EXAMPLE) == ["mlp.0"]  # the others feed sums, layer norms or attention, or run twice
    assert prunable(WRN(10, 1, in_channels=1), EXAMPLE) == [f"block{number}.0.conv1" for number in (1, 2, 3)]


def test_layers_coupled_by_products_and_shared_layers_are_one_group() -> None:
    squeezed = groups(Squeezed(), EXAMPLE)
    assert [sorted(group.layers) for group in squeezed] == [["conv", "up"], ["down"], ["left", "right"]]
    assert sorted(squeezed[0].consumers) == ["down", "left", "right"]
    assert list(squeezed[2].consumers) == ["shared"]
    # Nor are layers that tied weights read or make: removing units of one of these would change the other.


def test_layers_with_fixed_channels_are_in_no_group() -> None:
    assert [list(group.layers) for group in groups(Recurrent(), EXAMPLE)] == [["shuffled"]]


def test_groups_of_residual_networks() -> None:
    images = torch.randn(2, 3, 32, 32)
    network = ImageNetResNet()
    sums = [group for group in groups(network, images) if len(group.layers) > 1]
    assert [sorted(group.layers) for group in sums] == [
        ["conv1", "layer1.0.conv2", "layer1.1.conv2"],
        *([f"layer{stage}.0.conv2", f"layer{stage}.0.downsample.0", f"layer{stage}.1.conv2"] for stage in (2, 3, 4)),
    ]
    assert [group.units for group in sums] == [4, 6, 8, 10]
    assert prunable(network, images) == [f"layer{stage}.{block}.conv1" for stage in (1, 2, 3, 4) for block in (0, 1)]
    # A shortcut that adds channels of zeros couples those of the first stage through all stages, and fixes the others.
    padded = build("resnet8", num_classes=10, input_shape=(3, 32, 32))
    (coupled,) = [group for group in groups(padded, images) if len(group.layers) > 1]
    assert coupled.units == 16
    assert coupled.layers["layer2.0.conv2"].squeeze(1).tolist() == list(range(8, 24))
    assert coupled.layers["layer3.0.conv2"].squeeze(1).tolist() == list(range(24, 40))


def test_two_units_remain() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2), nn.ReLU(), nn.Linear(2, 3))
    assert prunable(network, EXAMPLE) == []
    group = group_of(network, "1", EXAMPLE)
    assert group
    assert group.consumers["3"].tolist() == [[0], [1]]


def test_a_single_unit_has_no_group() -> None:
    assert group_of(nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.ReLU(), nn.Linear(1, 3)), "1", EXAMPLE) is None


def test_detection_does_not_change_network(state_of: Any, changed: Any) -> None:
    network = with_statistics(sequential_network()).train()
    before = state_of(network)
    prunable(network, EXAMPLE)
    assert changed(before, state_of(network)) == set()
    assert network.training
    assert applied_operations(network) == []
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("make", [sequential_network, Branches, Attention, Squeezed, Recurrent])
def test_dropping_units_equals_ignoring_them(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    network = with_statistics(make())
    for group in groups(network, EXAMPLE):
        smaller = copy.deepcopy(network)
        indices = list(range(0, group.units, 2))
        zeroed_network = copy.deepcopy(network)
        for name, columns in group.consumers.items():
            zeroed_network.get_parameter(f"{name}.weight").data[:, columns[indices].flatten()] = 0
        drop(smaller, group, indices)
        assert torch.allclose(smaller(EXAMPLE), zeroed_network(EXAMPLE), atol=1e-6)
        smaller(EXAMPLE).sum().backward()


def test_parameters_add_up() -> None:
    network = sequential_network()
    before = parameters(network)
    group = group_of(network, "4", EXAMPLE)
    assert group
    drop(network, group, [1, 4])
    # Per channel: 5 x 3 x 3 weights and a bias, a scale and a shift at 4 positions, 7 weights at 4 positions.
    assert before - parameters(network) == 2 * (5 * 9 + 1 + 2 * 4 + 7 * 4)
    assert [(entry["layer"], entry["inputs"], entry["outputs"]) for entry in applied_operations(network)] == [
        ("4", 5, 4),
        ("7", 16, 16),
        ("9", 16, 7),
    ]


def test_weights_file_of_pruned_network_can_be_loaded(tmp_path: Path, refused: Any) -> None:
    torch.manual_seed(0)
    network = with_statistics(sequential_network())
    for layer, removed in (("0", [0, 3]), ("4", [5]), ("0", [1])):
        group = group_of(network, layer, EXAMPLE)
        assert group
        drop(network, group, removed)
    operations = applied_operations(network)
    assert [entry["layer"] for entry in operations].count("0") == 1  # one entry per layer
    save_weights(tmp_path / "weights.safetensors", network, {})
    second_network = reapply(sequential_network(), operations, EXAMPLE)
    with refused("do not fit"):
        load_weights(tmp_path / "weights.safetensors", sequential_network())
    load_weights(tmp_path / "weights.safetensors", second_network)
    assert torch.equal(second_network.eval()(EXAMPLE), network(EXAMPLE))
    assert applied_operations(second_network) == operations
    assert str(second_network) == str(network)


def test_invalid_sizes_are_refused(refused: Any) -> None:
    network = sequential_network()
    with refused("'nine'", "layer to resize"):
        apply(network, EXAMPLE, layer="nine", inputs=1, outputs=1)
    with refused("'2'", "ReLU", "only a Conv2d"):
        apply(network, EXAMPLE, layer="2", inputs=1, outputs=1)
    with refused("'0'", "5 outputs", "not 6"):
        apply(network, EXAMPLE, layer="0", inputs=1, outputs=6)
    with refused("'0'", "1 inputs", "not 0"):
        apply(network, EXAMPLE, layer="0", inputs=0, outputs=5)
    with refused("cannot be repeated"):
        reapply(network, [{"operation": "resize", "layer": "0"}], EXAMPLE)
    assert applied_operations(network) == []
