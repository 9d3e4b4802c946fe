"""The activations of a layer's units as the next layers receive them, and the change of these layers' weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.methods.lre_amc.redundancy import Elimination
from tutelage.models.groups import Group
from tutelage.models.modes import eval_mode


def takes_constant(network: nn.Module, group: Group) -> bool:
    """Whether the bias of every consumer can absorb a constant input.

    That of a convolution with zero padding cannot, since the constant is missing at the border.
    """
    return all(_takes_constant(network.get_submodule(name)) for name in group.consumers)


@torch.no_grad()
def second_moments(network: nn.Module, group: Group, images: Iterable[Tensor]) -> Tensor:
    """Z'Z of the units' activations at the inputs of the consumers, with a constant last column if they can absorb one.

    Z has one row for each image, position and consumer; only the sum over the rows is stored, in float64 on the CPU, so
    that the result is reproducible.

    Args:
        network: the network; it runs in eval mode.
        group: a group of this network.
        images: batches (B, C, H, W) of normalised images.

    Returns:
        (units, units), or (units + 1, units + 1) with the constant.
    """
    constant = int(takes_constant(network, group))
    total = torch.zeros(group.units + constant, group.units + constant, dtype=torch.float64)

    def add(columns: Tensor) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = inputs[0] if isinstance(module, nn.Linear) else inputs[0].movedim(1, -1)
            rows = rows[..., columns].movedim(-1, -2).flatten(0, -2).cpu().double()
            if constant:
                rows = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
            total.add_(rows.T @ rows)

        return hook

    handles = [
        network.get_submodule(name).register_forward_pre_hook(add(columns)) for name, columns in group.consumers.items()
    ]
    try:
        with eval_mode(network):
            for batch in images:
                network(batch)
    finally:
        for handle in handles:
            handle.remove()
    return total


@torch.no_grad()
def compensate(network: nn.Module, group: Group, elimination: Elimination) -> None:
    """Adjust the weights and biases of the consumers for the units to be removed, at all kernel positions alike.

    The bias absorbs the constant: the sum over positions of W[:, j] A[constant, j].
    """
    transfer = elimination.transfer
    unit_transfer = transfer[: group.units, : group.units]
    for name, columns in group.consumers.items():
        consumer = dict(network.get_submodule(name).named_parameters())
        weight = consumer["weight"].cpu().double().reshape(*consumer["weight"].shape[:2], -1)
        indices = columns.cpu()
        units = weight[:, indices]  # (outputs, units, positions, kernel)
        weight[:, indices] = torch.einsum("oupk,uv->ovpk", units, unit_transfer)
        consumer["weight"].copy_(weight.view(consumer["weight"].shape))
        if len(transfer) > group.units and "bias" in consumer:
            constant = torch.einsum("oupk,u->o", units, transfer[: group.units, -1])
            consumer["bias"].add_(constant.to(consumer["bias"]))


def _takes_constant(consumer: nn.Module) -> bool:
    padded = isinstance(consumer, nn.Conv2d) and consumer.padding_mode == "zeros"
    padding = consumer.padding if isinstance(consumer, nn.Conv2d) else (0,)
    return consumer.bias is not None and not (padded and padding != "valid" and any(padding))
