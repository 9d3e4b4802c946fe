"""Which units of a network can be taken out, and taking them out.

A layer's units can go where each of them reaches the layers behind it through channels of its own: past batch
normalisations, activations, pooling and flattening, up to the next convolutions or linear layers. That is found without
knowing the network, by making units NaN and watching where the NaN goes, and tried on a copy before it is believed.
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

FEWEST = 2  # units that always stay: a single one would be broadcast where another number does not fit


@dataclass(frozen=True)
class Group:
    """A layer and all that must change with it when units of it go.

    Attributes:
        layer: the ``nn.Conv2d`` or ``nn.Linear`` whose outputs the units are.
        units: how many it has.
        norms, consumers: batch normalisations between, and the layers that read the units, by name; for each
            (units, positions) int64, the channels or features in which it is given the unit: several where maps were
            flattened.
    """

    layer: str
    units: int
    norms: Mapping[str, Tensor]
    consumers: Mapping[str, Tensor]


def prunable(network: nn.Module, example: Tensor) -> list[str]:
    """The layers whose units can be taken out one by one, in the order of definition.

    Layers of more than two units alone, whose group is whole: on a copy, a network without a unit gives what the
    network gives in which nobody reads that unit.

    Args:
        network: images to logits; it is left as it is.
        example: (B, C, H, W), images as it takes them.
    """
    return [name for name, _ in network.named_modules() if name and _is_whole(network, name, example)]


def group_of(network: nn.Module, layer: str, example: Tensor) -> Group | None:
    """What must change with a layer when units of it go; ``None`` where units cannot be told apart behind it.

    Sample 2b of one batch has NaN in the units whose number has bit b, sample 2b + 1 in all others. A channel that
    depends on a single unit is NaN in exactly one of each two, and these spell the unit's number.
    """
    producer = network.get_submodule(layer)
    if not _weighted(producer) or layer_sizes(producer)[1] <= FEWEST:
        return None
    units = layer_sizes(producer)[1]
    bits = (units - 1).bit_length()
    has_bit = torch.arange(units, device=example.device) >> torch.arange(bits, device=example.device)[:, None] & 1 == 1
    codes = torch.stack([has_bit, ~has_bit], 1).flatten(0, 1)
    seen: dict[str, Tensor] = {}

    def poison(module: nn.Module, _taken: Any, given: Tensor) -> Tensor:
        given = given.clone()
        given.movedim(-1 if isinstance(module, nn.Linear) else 1, 1)[codes] = torch.nan
        return given

    def watch(name: str) -> Any:
        def look(module: nn.Module, taken: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            nan = taken[0].isnan()
            if isinstance(module, nn.Linear):
                nan = nan.reshape(len(nan), -1, nan.shape[-1]).any(1)
            else:
                nan = nan.reshape(*nan.shape[:2], -1).any(2)
            seen[name] = seen.get(name, torch.zeros_like(nan)) | nan
            return taken if isinstance(module, _BatchNorm) else (taken[0].nan_to_num(), *taken[1:])

        return look

    watched = {name: module for name, module in network.named_modules() if isinstance(module, _BatchNorm)}
    watched |= {name: module for name, module in network.named_modules() if _weighted(module)}
    handles = [module.register_forward_pre_hook(watch(name)) for name, module in watched.items()]
    handles.append(producer.register_forward_hook(poison))
    try:
        with eval_mode(network), torch.no_grad():
            logits = first_tensor(network(example[:1].expand(len(codes), *example.shape[1:]).contiguous()))
    except NETWORK_ERRORS:  # the batch is not the first dimension there
        return None
    finally:
        for handle in handles:
            handle.remove()
    if logits is None or logits.isnan().any():
        return None
    norms: dict[str, Tensor] = {}
    consumers: dict[str, Tensor] = {}
    for name, nan in seen.items():
        if not nan.any():
            continue
        columns = _columns(nan, units)
        if columns is None or not resizable(watched[name]):
            return None
        (norms if isinstance(watched[name], _BatchNorm) else consumers)[name] = columns
    return Group(layer, units, norms, consumers) if consumers and layer not in consumers else None


def takes_constant(network: nn.Module, group: Group) -> bool:
    """Whether every consumer can take a constant over into its bias.

    A convolution with zero padding cannot: at the border the constant is missing.
    """
    return all(_takes_constant(network.get_submodule(name)) for name in group.consumers)


@torch.no_grad()
def second_moments(network: nn.Module, group: Group, images: Iterable[Tensor]) -> Tensor:
    """Z'Z of the units as the consumers are given them, with a constant as the last column where they take one.

    One row for each image, position and consumer; only the sum over all rows is held. Float64 on the CPU, so that it is
    the same each time.

    Args:
        network: in eval mode meanwhile.
        group: of this network.
        images: batches (B, C, H, W) as the network takes them.

    Returns:
        (units, units), or one more of each.
    """
    constant = int(takes_constant(network, group))
    total = torch.zeros(group.units + constant, group.units + constant, dtype=torch.float64)

    def add(columns: Tensor) -> Any:
        def look(module: nn.Module, taken: tuple[Tensor, ...]) -> None:
            rows = taken[0] if isinstance(module, nn.Linear) else taken[0].movedim(1, -1)
            rows = rows[..., columns].movedim(-1, -2).flatten(0, -2).cpu().double()
            if constant:
                rows = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
            total.add_(rows.T @ rows)

        return look

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
def take_over(network: nn.Module, group: Group, elimination: Elimination) -> None:
    """Give the consumers' weights and biases what the units that are to go did, at all kernel positions alike.

    The bias takes the part of the constant: the sum over positions of W[:, j] A[constant, j].
    """
    transfer = elimination.transfer
    between = transfer[: group.units, : group.units]
    for name, columns in group.consumers.items():
        consumer = dict(network.get_submodule(name).named_parameters())
        weight = consumer["weight"].cpu().double().reshape(*consumer["weight"].shape[:2], -1)
        places = columns.cpu()
        units = weight[:, places]  # (outputs, units, positions, kernel)
        weight[:, places] = torch.einsum("oupk,uv->ovpk", units, between)
        consumer["weight"].copy_(weight.view(consumer["weight"].shape))
        if len(transfer) > group.units and "bias" in consumer:
            constant = torch.einsum("oupk,u->o", units, transfer[: group.units, -1])
            consumer["bias"].add_(constant.to(consumer["bias"]))


def drop(network: nn.Module, group: Group, removed: Iterable[int]) -> None:
    """Take these units out of the layer, of the norms behind it and of its consumers."""
    stays = torch.ones(group.units, dtype=torch.bool)
    stays[list(removed)] = False
    select_units(network, group.layer, outputs=stays.nonzero().squeeze(1))
    for name, columns in (*group.norms.items(), *group.consumers.items()):
        module = network.get_submodule(name)
        left = torch.ones(layer_sizes(module)[0], dtype=torch.bool)
        left[columns.cpu()[~stays]] = False
        places = left.nonzero().squeeze(1)
        if isinstance(module, _BatchNorm):
            select_units(network, name, outputs=places)
        else:
            select_units(network, name, inputs=places)


def _columns(nan: Tensor, units: int) -> Tensor | None:
    """(units, positions): which columns belong to each unit, from the codes that they spell; ``None`` if not to one."""
    touched = nan.any(0).nonzero().squeeze(1)
    has_bit, has_not = nan[0::2, touched], nan[1::2, touched]
    if not (has_bit ^ has_not).all():
        return None
    unit = (has_bit.long() << torch.arange(len(has_bit), device=nan.device)[:, None]).sum(0)
    counts = unit.bincount(minlength=units)
    if not (counts == counts[0]).all():
        return None
    return touched[unit.argsort(stable=True)].view(units, -1)


def _weighted(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d | nn.Linear) and resizable(module)


def _takes_constant(consumer: nn.Module) -> bool:
    padded = isinstance(consumer, nn.Conv2d) and consumer.padding_mode == "zeros"
    padding = consumer.padding if isinstance(consumer, nn.Conv2d) else (0,)
    return consumer.bias is not None and not (padded and padding != "valid" and any(padding))


def _is_whole(network: nn.Module, layer: str, example: Tensor) -> bool:
    group = group_of(network, layer, example)
    if group is None:
        return False
    unread, smaller = copy.deepcopy(network), copy.deepcopy(network)
    with torch.no_grad():
        for name, columns in group.consumers.items():
            unread.get_parameter(f"{name}.weight")[:, columns[0]] = 0
        drop(smaller, group, [0])
        try:
            with eval_mode(unread), eval_mode(smaller):
                expected, given = first_tensor(unread(example)), first_tensor(smaller(example))
        except NETWORK_ERRORS:  # something else expects the unit: a sum with another branch, a view
            return False
    if expected is None or given is None or given.shape != expected.shape:
        return False
    return torch.allclose(given, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
