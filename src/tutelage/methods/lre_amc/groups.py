"""Finding and removing the prunable units of a network.

A layer's units can be removed if each reaches the following layers through separate channels: past batch
normalisations, activations, pooling and flattening, up to the next convolutions or linear layers. This is detected in
any network by setting units to NaN and observing where NaN appears, and then verified on a copy.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tutelage.errors import NETWORK_ERRORS
from tutelage.methods.lre_amc.redundancy import Elimination
from tutelage.models.modes import eval_mode
from tutelage.models.outputs import first_tensor
from tutelage.models.surgery.resize import layer_sizes, resizable, select_units

MIN_UNITS = 2  # a layer keeps: a single unit would be broadcast where another number is an error


@dataclass(frozen=True)
class Group:
    """A layer and the layers that change with it if units are removed.

    Attributes:
        layer: the ``nn.Conv2d`` or ``nn.Linear`` whose outputs are the units.
        units: the number of units.
        norms: the batch normalisations in between, by name, with the channels of each unit, (units, positions) int64.
        consumers: the layers that read the units, by name, with the input channels or features of each unit,
            (units, positions) int64; several per unit if maps were flattened.
    """

    layer: str
    units: int
    norms: Mapping[str, Tensor]
    consumers: Mapping[str, Tensor]


def prunable(network: nn.Module, example: Tensor) -> list[str]:
    """The layers with more than two units whose units can be removed one by one, in the order of definition.

    It is verified on a copy that removing a unit has the same effect as setting the weights that read it to 0.

    Args:
        network: images to logits; it is not changed.
        example: (B, C, H, W), normalised images.
    """
    return [name for name, _ in network.named_modules() if name and _is_whole(network, name, example)]


def group_of(network: nn.Module, layer: str, example: Tensor) -> Group | None:
    """The group of a layer; ``None`` if it has one unit, or the next layers do not read its units separately.

    In one batch, sample 2b has NaN in the units whose number has bit b set, and sample 2b + 1 in all others. A channel
    that depends on a single unit is NaN in exactly one sample of each pair, and these bits are the unit's number.
    """
    producer = network.get_submodule(layer)
    if not _weighted(producer) or layer_sizes(producer)[1] < MIN_UNITS:
        return None
    units = layer_sizes(producer)[1]
    bits = (units - 1).bit_length()
    has_bit = torch.arange(units, device=example.device) >> torch.arange(bits, device=example.device)[:, None] & 1 == 1
    codes = torch.stack([has_bit, ~has_bit], 1).flatten(0, 1)
    nan_channels: dict[str, Tensor] = {}

    def set_nan(module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output.movedim(-1 if isinstance(module, nn.Linear) else 1, 1)[codes] = torch.nan
        return output

    def observe(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            nan = inputs[0].isnan()
            if isinstance(module, nn.Linear):
                nan = nan.reshape(len(nan), -1, nan.shape[-1]).any(1)
            else:
                nan = nan.reshape(*nan.shape[:2], -1).any(2)
            nan_channels[name] = nan_channels.get(name, torch.zeros_like(nan)) | nan
            return inputs if isinstance(module, _BatchNorm) else (inputs[0].nan_to_num(), *inputs[1:])

        return hook

    modules = {name: module for name, module in network.named_modules() if isinstance(module, _BatchNorm)}
    modules |= {name: module for name, module in network.named_modules() if _weighted(module)}
    handles = [module.register_forward_pre_hook(observe(name)) for name, module in modules.items()]
    handles.append(producer.register_forward_hook(set_nan))
    try:
        with eval_mode(network), torch.no_grad():
            logits = first_tensor(network(example[:1].expand(len(codes), *example.shape[1:]).contiguous()))
    except NETWORK_ERRORS:  # for example, because the batch is not the first dimension of the layer's output
        return None
    finally:
        for handle in handles:
            handle.remove()
    if logits is None or logits.isnan().any():
        return None
    norms: dict[str, Tensor] = {}
    consumers: dict[str, Tensor] = {}
    for name, nan in nan_channels.items():
        if not nan.any():
            continue
        columns = _columns(nan, units)
        if columns is None or not resizable(modules[name]):
            return None
        (norms if isinstance(modules[name], _BatchNorm) else consumers)[name] = columns
    return Group(layer, units, norms, consumers) if consumers and layer not in consumers else None


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


def drop(network: nn.Module, group: Group, removed: Iterable[int]) -> None:
    """Remove units from the layer, from its batch normalisations and from its consumers."""
    remaining_units = torch.ones(group.units, dtype=torch.bool)
    remaining_units[list(removed)] = False
    select_units(network, group.layer, outputs=remaining_units.nonzero().squeeze(1))
    for name, columns in (*group.norms.items(), *group.consumers.items()):
        module = network.get_submodule(name)
        remaining = torch.ones(layer_sizes(module)[0], dtype=torch.bool)
        remaining[columns.cpu()[~remaining_units]] = False
        indices = remaining.nonzero().squeeze(1)
        if isinstance(module, _BatchNorm):
            select_units(network, name, outputs=indices)
        else:
            select_units(network, name, inputs=indices)


def _columns(nan: Tensor, units: int) -> Tensor | None:
    """The columns of each unit, (units, positions), decoded from NaN; ``None`` if a column depends on several units."""
    used_columns = nan.any(0).nonzero().squeeze(1)
    has_bit, has_not = nan[0::2, used_columns], nan[1::2, used_columns]
    if not (has_bit ^ has_not).all():
        return None
    unit = (has_bit.long() << torch.arange(len(has_bit), device=nan.device)[:, None]).sum(0)
    counts = unit.bincount(minlength=units)
    if not (counts == counts[0]).all():
        return None
    return used_columns[unit.argsort(stable=True)].view(units, -1)


def _weighted(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d | nn.Linear) and resizable(module)


def _takes_constant(consumer: nn.Module) -> bool:
    padded = isinstance(consumer, nn.Conv2d) and consumer.padding_mode == "zeros"
    padding = consumer.padding if isinstance(consumer, nn.Conv2d) else (0,)
    return consumer.bias is not None and not (padded and padding != "valid" and any(padding))


def _is_whole(network: nn.Module, layer: str, example: Tensor) -> bool:
    group = group_of(network, layer, example)
    if group is None or group.units <= MIN_UNITS:
        return False
    unread, smaller = copy.deepcopy(network), copy.deepcopy(network)
    with torch.no_grad():
        for name, columns in group.consumers.items():
            unread.get_parameter(f"{name}.weight")[:, columns[0]] = 0
        drop(smaller, group, [0])
        try:
            with eval_mode(unread), eval_mode(smaller):
                expected, actual = first_tensor(unread(example)), first_tensor(smaller(example))
        except NETWORK_ERRORS:  # another operation needs the unit: a sum with another branch, a view
            return False
    if expected is None or actual is None or actual.shape != expected.shape:
        return False
    return torch.allclose(actual, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
