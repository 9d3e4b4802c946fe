"""Layers of a network that become equally narrower."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn

from tutelage.errors import TutelageError
from tutelage.evaluation.cost import flops, parameters
from tutelage.models.groups import MIN_UNITS, Group, groups, select

Resource = Literal["flops", "parameters"]


def cost_of(resource: Resource, network: nn.Module, example: Tensor) -> int:
    """The operations of one input, or the number of parameters.

    Args:
        resource: "flops" or "parameters".
        network: inputs to logits.
        example: (B, ...), normalised inputs, of which the first one is used.
    """
    return flops(network, example[:1]) if resource == "flops" else parameters(network)


def narrow_equally(
    network: nn.Module, example: Tensor, resource: Resource, target: float
) -> tuple[list[Group], list[Tensor]]:
    """Remove the same share of the units of each layer, those whose weights have the smallest L1 norm.

    Args:
        network: inputs to logits; it is changed.
        example: (B, ...), normalised inputs.
        resource: what is limited.
        target: the largest cost, as a share of that before. It is met as closely as numbers of units allow.

    Returns:
        The groups of units of the network before, and the units of each that remain, (units,) bool.

    Raises:
        TutelageError: no unit can be removed, or the target cannot be met.
    """
    candidates = groups(network, example)
    if not candidates:
        raise TutelageError(
            f"{type(network).__name__} has no units that can be removed: the next layers do not read them "
            "separately, or another operation needs their number; use another network"
        )
    masks = _largest_at_most(network, candidates, example, resource, target)
    select(network, candidates, masks)
    return candidates, masks


def _largest_at_most(
    network: nn.Module,
    candidates: list[Group],
    example: Tensor,
    resource: Resource,
    target: float,
) -> list[Tensor]:
    """The units that remain, (units,) bool for each group, at the largest share whose cost is at most the target.

    Raises:
        TutelageError: even the smallest share costs more.
    """
    norms = [_norms(network, group) for group in candidates]
    whole = cost_of(resource, network, example)

    def masks(share: float) -> list[Tensor]:
        remaining = []
        for values in norms:
            mask = torch.zeros(len(values), dtype=torch.bool)
            mask[values.argsort(descending=True, stable=True)[: max(MIN_UNITS, round(share * len(values)))]] = True
            remaining.append(mask)
        return remaining

    def cost(share: float) -> float:
        smaller = copy.deepcopy(network)
        select(smaller, candidates, masks(share))
        return cost_of(resource, smaller, example) / whole

    low, high = 0.0, 1.0
    if cost(low) > target:
        raise TutelageError(
            f"{type(network).__name__} cannot be reduced to {target:g} of its cost by removing units: the smallest "
            f"share is {cost(low):.3g}; choose a larger target"
        )
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) <= target else (low, middle)
    return masks(low)


def _norms(network: nn.Module, group: Group) -> Tensor:
    """The L1 norm of each unit's weights, over all layers of its group, (units,)."""
    total = torch.zeros(group.units)
    for name, columns in group.layers.items():
        weight = network.get_submodule(name).get_parameter("weight").detach().float().cpu()
        total += weight.flatten(1).abs().sum(1)[columns.cpu()].sum(1)
    return total
