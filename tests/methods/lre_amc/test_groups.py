"""Pruning of units: which are prunable, which layers change with them, and that nothing else changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.evaluation.cost import parameters
from tutelage.methods.lre_amc.groups import compensate, drop, group_of, prunable, second_moments, takes_constant
from tutelage.methods.lre_amc.redundancy import Elimination, eliminate
from tutelage.models.networks.wrn import WRN
from tutelage.models.surgery import applied_operations, reapply
from tutelage.models.surgery.resize import apply
from tutelage.models.weights import load_weights, save_weights

EXAMPLE = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def sequential_network() -> nn.Sequential:
    """Sequential convolutions, pooling, flattening, a hidden layer; in-place activations."""
    return nn.Sequential(
        nn.Conv2d(1, 5, 3, padding=1, bias=False),
        nn.BatchNorm2d(5),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(5, 6, 3),
        nn.ReLU6(),
        nn.Flatten(),
        nn.BatchNorm1d(24),
        nn.Dropout(0.5, inplace=True),
        nn.Linear(24, 7),
        nn.GELU(),
        nn.Linear(7, 3),
    )


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


def with_statistics(network: nn.Module) -> nn.Module:
    """With non-trivial statistics and scales."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                assert tensor is not None
                tensor.copy_(0.5 + torch.rand(len(tensor), generator=generator))
            assert module.running_mean is not None
            module.running_mean.copy_(torch.randn(len(module.running_mean), generator=generator))
    return network.eval()


def test_groups_of_sequential_network() -> None:
    network = sequential_network()
    assert prunable(network, EXAMPLE) == ["0", "4", "9"]
    first, second, third_group = (group_of(network, layer, EXAMPLE) for layer in ("0", "4", "9"))
    assert first
    assert second
    assert third_group
    assert (first.units, list(first.norms), list(first.consumers)) == (5, ["1"], ["4"])
    assert torch.equal(first.norms["1"], torch.arange(5)[:, None])
    assert (second.units, list(second.norms), list(second.consumers)) == (6, ["7"], ["9"])
    assert torch.equal(second.consumers["9"], torch.arange(24).view(6, 4))  # 2 x 2 positions of each channel
    assert (third_group.units, dict(third_group.norms), list(third_group.consumers)) == (7, {}, ["11"])


def test_concatenated_branches_are_prunable_and_summed_ones_are_not() -> None:
    network = Branches()
    assert prunable(network, EXAMPLE) == ["left", "right"]
    group = group_of(network, "right", EXAMPLE)
    assert group
    assert {name: columns.squeeze(1).tolist() for name, columns in group.consumers.items()} == {
        "joined": [3, 4, 5, 6],
        "also": [3, 4, 5, 6],
    }


def test_layers_that_mix_units_are_not_prunable() -> None:
    assert prunable(Attention(), EXAMPLE) == ["mlp.0"]  # the others feed sums, layer norms or attention, or run twice
    assert prunable(WRN(10, 1, in_channels=1), EXAMPLE) == [f"block{number}.0.conv1" for number in (1, 2, 3)]


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
    group = group_of(network, "0", EXAMPLE)
    assert group
    second_moments(network, group, [EXAMPLE])
    assert changed(before, state_of(network)) == set()
    assert network.training
    assert applied_operations(network) == []
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("make", [sequential_network, Branches, Attention])
def test_dropping_units_equals_ignoring_them(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    network = with_statistics(make())
    for layer in prunable(network, EXAMPLE):
        smaller = copy.deepcopy(network)
        group = group_of(network, layer, EXAMPLE)
        assert group
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


@pytest.mark.parametrize("layer", ["0", "4", "9"])
def test_duplicate_unit_is_removed_without_loss(layer: str) -> None:
    torch.manual_seed(0)
    network = with_statistics(sequential_network()).double()
    group = group_of(network, layer, EXAMPLE.double())
    assert group
    for name, rows in ((layer, torch.arange(group.units)[:, None]), *group.norms.items()):
        for tensor in (*network.get_submodule(name).parameters(), *network.get_submodule(name).buffers()):
            if tensor.ndim:
                tensor.data[rows[2]] = tensor.data[rows[0]]
    images = torch.randn(40, 1, 8, 8, dtype=torch.float64)
    expected = network(images)
    gram = second_moments(network, group, [images[:30], images[30:]])
    elimination = eliminate(gram, 1, ridge=1e-9, units=group.units)
    assert elimination.removed[0] in (0, 2)
    compensate(network, group, elimination)
    assert torch.allclose(network(images), expected, atol=1e-9)  # the unit exists, but no layer reads it
    drop(network, group, elimination.removed)
    assert torch.allclose(network(images), expected, atol=1e-9)


def padded_network(padding: int) -> tuple[nn.Sequential, Tensor]:
    """A network whose third unit is the first plus 5, before a 3x3 convolution."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Conv2d(3, 2, 3, padding=padding), nn.Flatten(), nn.LazyLinear(2))
    network = network.double()
    images = torch.randn(20, 1, 8, 8, dtype=torch.float64)
    network[0].weight.data[1] = 0  # the second is a constant
    network[0].weight.data[2] = network[0].weight.data[0]
    network[0].bias.data.copy_(torch.tensor([0.25, 0.0, 5.25]))
    network(images)
    return network, images


def test_constant_is_absorbed_by_the_bias() -> None:
    network, images = padded_network(padding=0)
    group = group_of(network, "0", images)
    assert group
    assert takes_constant(network, group)
    expected = network(images)
    gram = second_moments(network, group, [images])
    assert gram.shape == (4, 4)
    elimination = eliminate(gram, 2, ridge=1e-9, units=3)
    compensate(network, group, elimination)
    drop(network, group, elimination.removed)
    assert torch.allclose(network(images), expected, atol=1e-6)


def test_constant_is_wrong_at_zero_padded_border() -> None:
    network, images = padded_network(padding=1)
    group = group_of(network, "0", images)
    assert group
    assert not takes_constant(network, group)
    assert second_moments(network, group, [images]).shape == (3, 3)
    # With the exact relation, inner pixels are exact and those at the border are not.
    transfer = torch.eye(4, dtype=torch.float64)
    transfer[2] = torch.tensor([1.0, 0.0, 0.0, 5.0])
    expected = network[:2](images)
    compensate(network, group, Elimination((2,), transfer))
    gap = (network[:2](images) - expected).abs()
    assert gap[:, :, 1:-1, 1:-1].max() < 1e-12
    assert gap.max() > 0.1


def test_second_moments_are_those_of_consumer_inputs() -> None:
    network = with_statistics(sequential_network())
    images = torch.randn(6, 1, 8, 8)
    consumer_inputs: dict[str, Tensor] = {}
    for name in ("4", "9"):
        network.get_submodule(name).register_forward_pre_hook(
            lambda _, x, name=name: consumer_inputs.update({name: x[0]})
        )
    network(images)
    first, second = group_of(network, "0", EXAMPLE), group_of(network, "4", EXAMPLE)
    network(images)
    assert first
    assert second
    for group, rows in (
        (first, consumer_inputs["4"].movedim(1, -1).reshape(-1, 5)),
        (second, consumer_inputs["9"].view(6, 6, 4).movedim(1, -1).reshape(-1, 6)),
    ):
        z = torch.cat([rows.double(), torch.ones(len(rows), 1, dtype=torch.float64)], 1).detach()
        assert torch.allclose(second_moments(network, group, images.split(4)), z.T @ z)


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
