"""The cost of a network as a function of the numbers of units that remain in each group."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tutelage.evaluation.cost import flops, parameters
from tutelage.models.groups import Group, groups, select
from tutelage.models.modes import eval_mode
from tutelage.models.outputs import first_tensor
from tutelage.models.surgery.resize import depthwise, layer_sizes, resizable

Resource = Literal["flops", "parameters"]


@dataclass(frozen=True)
class LayerCost:
    """The cost of a layer: product x inputs x outputs + linear x outputs.

    Attributes:
        block: the number of the block that it counts for.
        product, linear: k_l, and what a single output costs: a depthwise filter, a bias.
        inputs, outputs: the layer's sizes in the whole network.
        of_inputs, of_outputs: by the number of a group, how many inputs and outputs each of its units has.
    """

    block: int
    product: int
    linear: int
    inputs: int
    outputs: int
    of_inputs: Mapping[int, int] = field(default_factory=dict)
    of_outputs: Mapping[int, int] = field(default_factory=dict)

    def sizes(self, removed: Sequence[int]) -> tuple[int, int]:
        """The inputs and outputs that remain if so many units of each group are removed."""
        return (
            self.inputs - sum(positions * removed[group] for group, positions in self.of_inputs.items()),
            self.outputs - sum(positions * removed[group] for group, positions in self.of_outputs.items()),
        )

    def cost(self, removed: Sequence[int]) -> int:
        """The cost if so many units of each group are removed."""
        inputs, outputs = self.sizes(removed)
        return self.product * inputs * outputs + self.linear * outputs


@dataclass(frozen=True)
class Resources:
    """The cost of a network by blocks, exact in integers.

    Attributes:
        resource: "flops" of one input (a multiply-add counts as 2), or "parameters".
        groups: the units that can be removed.
        layers: the layers whose cost depends on the numbers of units.
        blocks: the names of the blocks.
        owners: the number of the block of each group, that of its first layer.
        constant: the cost that does not depend on the numbers of units.
    """

    resource: Resource
    groups: tuple[Group, ...]
    layers: tuple[LayerCost, ...]
    blocks: tuple[str, ...]
    owners: tuple[int, ...]
    constant: int

    @property
    def units(self) -> tuple[int, ...]:
        """The number of units of each group in the whole network."""
        return tuple(group.units for group in self.groups)

    def by_block(self, counts: Sequence[int]) -> list[int]:
        """The cost of each block if so many units of each group remain, without the constant."""
        removed = [units - count for units, count in zip(self.units, counts, strict=True)]
        costs = [0] * len(self.blocks)
        for layer in self.layers:
            costs[layer.block] += layer.cost(removed)
        return costs

    def total(self, counts: Sequence[int]) -> int:
        """The cost of the network if so many units of each group remain."""
        return self.constant + sum(self.by_block(counts))


def measured(resource: Resource, network: nn.Module, example: Tensor) -> int:
    """The cost of a network by the library's own counters; ``example`` is (1, ...)."""
    return flops(network, example) if resource == "flops" else parameters(network)


def resources_of(network: nn.Module, example: Tensor, blocks: Mapping[str, str], resource: Resource) -> Resources:
    """The cost of a network, with the groups that batch normalisation can switch off.

    A group can be compressed if setting the scales and biases of its batch normalisations to 0 has the same effect as
    removing the units, and if the cost of the smaller network is the predicted one. Both are tried on copies.

    Args:
        network: it is not changed.
        example: (B, ...), inputs as the network takes them.
        blocks: the block of each convolution and linear layer, from ``layer_blocks``.
        resource: what is counted.
    """
    candidates = [group for group in groups(network, example) if norms_of(network, group)]
    while True:
        cost = _resources(network, example, blocks, resource, candidates)
        valid = [number for number in range(len(candidates)) if _is_valid(network, example, cost, [number])]
        if len(valid) < len(candidates):
            candidates = [candidates[number] for number in valid]
        elif not candidates or _is_valid(network, example, cost, valid):
            return cost
        else:
            candidates = candidates[:-1]  # valid one by one, but not together


def _resources(
    network: nn.Module, example: Tensor, blocks: Mapping[str, str], resource: Resource, candidates: Sequence[Group]
) -> Resources:
    names = tuple(dict.fromkeys(blocks.values()))
    order = list(blocks)
    of_groups = [blocks[min(group.layers, key=order.index)] for group in candidates]
    of_norms = {name: block for group, block in zip(candidates, of_groups, strict=True) for name in group.between}
    positions = _positions(network, example[:1]) if resource == "flops" else {}
    uses = Counter(id(p) for _, p in network.named_parameters(remove_duplicate=False))
    layers = []
    for name, module in network.named_modules():
        block = blocks.get(name, of_norms.get(name))
        if block is None or not resizable(module) or any(uses[id(p)] > 1 for p in module.parameters()):
            continue
        product, linear = _coefficients(module, positions.get(name, 0), resource)
        of_inputs = _positions_of_units([group.consumers for group in candidates], name)
        of_outputs = _positions_of_units([{**group.layers, **group.between} for group in candidates], name)
        inputs, outputs = layer_sizes(module)
        layers.append(LayerCost(names.index(block), product, linear, inputs, outputs, of_inputs, of_outputs))
    variable = sum(layer.cost([0] * len(candidates)) for layer in layers)
    total = measured(resource, network, example[:1])
    owners = tuple(names.index(block) for block in of_groups)
    return Resources(resource, tuple(candidates), tuple(layers), names, owners, total - variable)


def _positions_of_units(parts: Sequence[Mapping[str, Tensor]], layer: str) -> dict[int, int]:
    """By the number of a group, how many channels of a layer each of its units has."""
    return {number: part[layer].shape[1] for number, part in enumerate(parts) if layer in part}


def _coefficients(module: nn.Module, positions: int, resource: Resource) -> tuple[int, int]:
    """The cost of a layer for each pair of an input and an output, and for each output."""
    if resource == "parameters" and isinstance(module, _BatchNorm):
        return 0, sum(1 for _ in module.parameters())
    if isinstance(module, _BatchNorm):
        return 0, 0
    kernel = math.prod(module.kernel_size) if isinstance(module, nn.Conv2d) else 1
    each = 2 * positions * kernel if resource == "flops" else kernel
    bias = int(resource == "parameters" and getattr(module, "bias", None) is not None)
    return (0, each + bias) if depthwise(module) else (each, bias)


def _positions(network: nn.Module, example: Tensor) -> dict[str, int]:
    """At how many positions each layer computes its outputs for one input."""
    counts: Counter[str] = Counter()

    def hook(name: str) -> Any:
        def count(module: nn.Module, _inputs: Any, output: Tensor) -> None:
            counts[name] += output.numel() // layer_sizes(module)[1]

        return count

    weighted = [(name, m) for name, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [module.register_forward_hook(hook(name)) for name, module in weighted if resizable(module)]
    try:
        with eval_mode(network), torch.no_grad():
            network(example)
    finally:
        for handle in handles:
            handle.remove()
    return dict(counts)


def norms_of(network: nn.Module, group: Group) -> list[tuple[_BatchNorm, Tensor]]:
    """The batch normalisations of a group that have scales, with the channels of each unit (units, positions)."""
    modules = [(network.get_submodule(name), columns) for name, columns in group.between.items()]
    return [(m, columns) for m, columns in modules if isinstance(m, _BatchNorm) and m.affine]


def _is_valid(network: nn.Module, example: Tensor, cost: Resources, numbers: Sequence[int]) -> bool:
    """Whether removing every other unit of these groups is what the cost and the switched-off scales say."""
    remaining = [torch.ones(group.units, dtype=torch.bool) for group in cost.groups]
    for number in numbers:
        remaining[number][::2] = False
    off, smaller = copy.deepcopy(network), copy.deepcopy(network)
    switch_off(off, cost.groups, remaining)
    select(smaller, cost.groups, remaining)
    with eval_mode(off), eval_mode(smaller), torch.no_grad():
        expected, actual = first_tensor(off(example)), first_tensor(smaller(example))
    if expected is None or actual is None:
        return False
    equal = torch.allclose(actual, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    predicted = cost.total([int(alive.sum()) for alive in remaining])
    return equal and measured(cost.resource, smaller, example[:1]) == predicted


@torch.no_grad()
def switch_off(network: nn.Module, candidates: Sequence[Group], remaining: Sequence[Tensor]) -> None:
    """Set scale and bias of the units that do not remain, (units,) bool for each group, to 0."""
    for group, alive in zip(candidates, remaining, strict=True):
        for norm, columns in norms_of(network, group):
            channels = columns[~alive].flatten().to(norm.weight.device)
            norm.weight[channels] = 0
            norm.bias[channels] = 0
