"""The activations of units and the compensation for removed ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.models.networks import sequential_network, with_statistics
from tutelage.methods.lre_amc.compensation import compensate, second_moments, takes_constant
from tutelage.methods.lre_amc.redundancy import Elimination, eliminate
from tutelage.models.groups import drop, group_of

EXAMPLE = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_second_moments_do_not_change_network(state_of: Any, changed: Any) -> None:
    network = with_statistics(sequential_network()).train()
    before = state_of(network)
    group = group_of(network, "0", EXAMPLE)
    assert group
    second_moments(network, group, [EXAMPLE])
    assert changed(before, state_of(network)) == set()
    assert network.training
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("layer", ["0", "4", "9"])
def test_duplicate_unit_is_removed_without_loss(layer: str) -> None:
    torch.manual_seed(0)
    network = with_statistics(sequential_network()).double()
    group = group_of(network, layer, EXAMPLE.double())
    assert group
    for name, rows in ((layer, torch.arange(group.units)[:, None]), *group.between.items()):
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
