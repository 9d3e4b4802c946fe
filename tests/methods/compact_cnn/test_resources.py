"""The cost of a network by its groups, the extraction, and the blocks."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import TinyNet
from tests.models.networks import with_statistics
from tutelage.evaluation.cost import flops, parameters
from tutelage.methods.compact_cnn.partition import layer_blocks
from tutelage.methods.compact_cnn.resources import Resource, norms_of, resources_of, switch_off
from tutelage.methods.compact_cnn.widths import meet, widened
from tutelage.models.groups import select
from tutelage.models.networks.mobilenetv2 import InvertedResidual
from tutelage.models.tapped import Tapped
from tutelage.models.zoo import build

EXAMPLE = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def flattened() -> nn.Module:
    """A convolution whose units are several inputs of a linear layer, and a batch normalisation of vectors."""
    return nn.Sequential(
        nn.Conv2d(1, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.MaxPool2d(4),
        nn.Flatten(),
        nn.Linear(20, 7),
        nn.BatchNorm1d(7),
        nn.ReLU(),
        nn.Linear(7, 3),
    )


def mobile() -> nn.Module:
    """A depthwise convolution between two batch normalisations, and a sum."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        InvertedResidual(6, 6, 1, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    )


def zoo(name: str) -> Callable[[], nn.Module]:
    return lambda: build(name, num_classes=4, input_shape=(1, 8, 8))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "tiny": (TinyNet, 2),
    "flattened": (flattened, 2),
    "mobile": (mobile, 2),
    "wrn-10-1": (zoo("wrn-10-1"), 6),
    "resnet8x0.25": (zoo("resnet8x0.25"), 4),
}


def stages(network: nn.Module, by: str = "stages") -> dict[str, str]:
    return layer_blocks(Tapped(network).trace(EXAMPLE), EXAMPLE, by)  # type: ignore[arg-type]


def masks_of(units: tuple[int, ...], seed: int) -> list[Tensor]:
    """At least two units of each group."""
    generator = torch.Generator().manual_seed(seed)
    masks = [torch.rand(count, generator=generator) < 0.5 for count in units]
    for mask in masks:
        mask[:2] = True
    return masks


@pytest.fixture(params=list(NETWORKS))
def network(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(3)
    module = NETWORKS[request.param][0]()
    module.expected = NETWORKS[request.param][1]  # type: ignore[assignment]
    return with_statistics(module)


@pytest.mark.parametrize("resource", ["flops", "parameters"])
def test_cost_is_that_of_the_extracted_network_and_logits_those_without_units_switched_off(
    network: nn.Module, resource: Resource
) -> None:
    cost = resources_of(network, EXAMPLE, stages(network), resource)
    assert len(cost.groups) == network.expected
    count = flops if resource == "flops" else lambda module, _: parameters(module)
    assert cost.total(cost.units) == count(network, EXAMPLE[:1])
    for seed in range(4):
        masks = masks_of(cost.units, seed)
        smaller, off = copy.deepcopy(network), copy.deepcopy(network)
        select(smaller, cost.groups, masks)
        switch_off(off, cost.groups, masks)
        numbers = [int(mask.sum()) for mask in masks]
        assert cost.total(numbers) == count(smaller, EXAMPLE[:1])
        assert cost.constant + sum(cost.by_block(numbers)) == cost.total(numbers)
        with torch.no_grad():
            torch.testing.assert_close(smaller.eval()(EXAMPLE), off.eval()(EXAMPLE), rtol=0, atol=1e-5)


def test_biases_of_units_without_scale_change_the_logits() -> None:
    """Removing units whose scale is 0 but whose bias is not removes the constant relu(beta)."""
    torch.manual_seed(0)
    network = with_statistics(TinyNet()).eval()
    cost = resources_of(network, EXAMPLE, stages(network), "flops")
    masks = masks_of(cost.units, 1)
    with torch.no_grad():
        for group, mask in zip(cost.groups, masks, strict=True):
            for norm, columns in norms_of(network, group):
                norm.weight[columns[~mask].flatten()] = 0
                norm.bias[columns[~mask].flatten()] = 0.5
        before = network(EXAMPLE)
        select(network, cost.groups, masks)
        assert (network(EXAMPLE) - before).abs().max() > 1e-3


def test_cost_of_two_layers_in_closed_form() -> None:
    cost = resources_of(TinyNet(), EXAMPLE, stages(TinyNet()), "flops")
    first, second = cost.units
    assert (first, second) == (4, 8)
    assert cost.total([3, 5]) == 2 * (64 * 9 * 3 + 16 * 9 * 3 * 5 + 5 * 4)
    of_parameters = resources_of(TinyNet(), EXAMPLE, stages(TinyNet()), "parameters")
    assert of_parameters.total([3, 5]) == 9 * 3 + 2 * 3 + 9 * 3 * 5 + 2 * 5 + 5 * 4 + 4


def test_layers_without_batch_normalisation_are_not_compressed() -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3),
        nn.BatchNorm2d(6, affine=False),
        nn.Conv2d(6, 5, 3),
        nn.BatchNorm2d(5),
        nn.Flatten(),
        nn.Linear(20, 3),
    )
    cost = resources_of(network, EXAMPLE, stages(network), "flops")
    assert [list(group.layers) for group in cost.groups] == [["4"]]


def test_path_beside_the_batch_normalisation_is_not_compressed() -> None:
    class Bypassed(TinyNet):
        def forward(self, x: Tensor) -> Tensor:
            x = self.conv1(x)
            x = torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(x)) + x)))
            return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]

    network = Bypassed()
    cost = resources_of(network, EXAMPLE, stages(network), "flops")
    assert [list(group.layers) for group in cost.groups] == [["conv2"]]


def test_layers_are_divided_by_stages_and_by_blocks() -> None:
    network = build("wrn-10-1", num_classes=4, input_shape=(1, 8, 8))
    by_stages = stages(network)
    assert list(dict.fromkeys(by_stages.values())) == ["stage1", "stage2", "stage3", "last"]
    assert by_stages["conv1"] == "stage1"  # the stem
    assert {by_stages[f"block2.0.{name}"] for name in ("conv1", "conv2", "shortcut")} == {"stage2"}
    assert by_stages["fc"] == "last"
    by_blocks = stages(network, "blocks")
    assert list(dict.fromkeys(by_blocks.values())) == ["conv1", "block1.0", "block2.0", "block3.0", "fc"]
    single = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    assert stages(single) == {"1": "network", "3": "network"}


def test_target_is_met_by_removing_the_least_important_units_and_adding_the_last_ones() -> None:
    cost = resources_of(flattened(), EXAMPLE, stages(flattened()), "parameters")
    importance = [torch.tensor([0.5, -3.0, 0.4, 0.01, -1.0]), torch.tensor([0.3, 0.2, 0.6, -2.0, 0.05, 0.7, 0.8])]
    for target in range(cost.total([2, 2]), cost.total(cost.units) + 1, 7):
        masks = meet(cost, importance, [3, 6], target, 2)
        numbers = [int(mask.sum()) for mask in masks]
        assert min(numbers) >= 2
        assert cost.total(numbers) <= target
        more = [
            [n + (k == group) for k, n in enumerate(numbers)] for group in (0, 1) if numbers[group] < cost.units[group]
        ]
        assert cost.total(numbers) >= 0.97 * target or all(cost.total(larger) > target for larger in more)
    fewer = meet(cost, importance, [3, 6], cost.total([2, 6]), 2)
    assert fewer[0].tolist() == [True, False, True, False, False]  # 0.01 is the least important one


def test_widths_grow_by_one_factor() -> None:
    network = build("wrn-10-1", num_classes=4, input_shape=(1, 8, 8))
    cost = resources_of(network, EXAMPLE, stages(network), "flops")
    counts = [max(2, units // 4) for units in cost.units]
    target = cost.total(cost.units) // 2
    wider = widened(cost, counts, target, 2)
    assert 0.9 * target < cost.total(wider) <= target
    factors = [after / before for after, before in zip(wider, counts, strict=True)]
    assert max(factors) - min(factors) < 0.3
    assert widened(cost, counts, cost.total(cost.units), 2) == list(cost.units)
