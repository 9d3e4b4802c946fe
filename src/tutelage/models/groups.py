"""Finding and removing the units of a network: channels and features, with all layers that must change together.

Units can be removed if they reach the following layers through separate channels: past batch normalisations, depthwise
convolutions, activations, sums, concatenations, pooling and flattening, up to the next convolutions or linear layers.
This is detected in any network by setting units to NaN and observing where NaN appears, and then verified on a copy.
"""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tutelage.errors import NETWORK_ERRORS
from tutelage.models.modes import eval_mode
from tutelage.models.outputs import first_tensor
from tutelage.models.surgery.resize import depthwise, layer_sizes, resizable, select_units

MIN_UNITS = 2  # a layer keeps: a single unit would be broadcast where another number is an error


@dataclass(frozen=True)
class Group:
    """Units, and the layers that change if some of them are removed.

    Each mapping is from the name of a layer to the channels or features of each unit, (units, positions) int64.

    Attributes:
        units: the number of units.
        layers: the ``nn.Conv2d`` and ``nn.Linear`` whose outputs are the units; several if their outputs are added.
        between: the batch normalisations and depthwise convolutions that the units pass.
        consumers: the layers that read the units; several positions per unit if maps were flattened.
    """

    units: int
    layers: Mapping[str, Tensor]
    between: Mapping[str, Tensor]
    consumers: Mapping[str, Tensor]


def groups(network: nn.Module, example: Tensor) -> list[Group]:
    """All groups with more than two units whose units can be removed one by one, in the order of their first layers.

    Each unit is in at most one group. It is verified on a copy that removing units has the same effect as setting the
    weights that read them to 0.

    Args:
        network: images to logits; it is not changed.
        example: (B, C, H, W), normalised images.
    """
    single = {name: group_of(network, name, example) for name, module in network.named_modules() if _weighted(module)}
    merged = _merged([group for group in single.values() if group is not None])
    copied = copy.deepcopy(network)
    return [group for group in merged if group.units > MIN_UNITS and _is_whole(copied, group, example)]


def prunable(network: nn.Module, example: Tensor) -> list[str]:
    """The layers that are alone in one of the ``groups`` of a network: no sum couples them with others."""
    return [next(iter(group.layers)) for group in groups(network, example) if len(group.layers) == 1]


def group_of(network: nn.Module, layer: str, example: Tensor) -> Group | None:
    """The units of one layer; ``None`` if it has a single one, or the next layers do not read its units separately.

    Whether a sum couples the layer with others is not considered.

    In one batch, sample 2b has NaN in the units whose number has bit b set, and sample 2b + 1 in all others. A channel
    that depends on a single unit is NaN in exactly one sample of each pair, and these bits are the unit's number. NaN
    ends where the next layers read it. What a layer computes without NaN is the same for all samples: it is computed
    for one of them, and repeated.
    """
    producer = network.get_submodule(layer)
    if not _weighted(producer) or layer_sizes(producer)[1] < MIN_UNITS:
        return None
    units = layer_sizes(producer)[1]
    bits = (units - 1).bit_length()
    has_bit = torch.arange(units, device=example.device) >> torch.arange(bits, device=example.device)[:, None] & 1 == 1
    codes = torch.stack([has_bit, ~has_bit], 1).flatten(0, 1)
    nan_channels: dict[str, Tensor] = {}
    shortened: set[nn.Module] = set()

    def set_nan(module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output.movedim(-1 if isinstance(module, nn.Linear) else 1, 1)[codes] = torch.nan
        return output

    def observe(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            values = inputs[0]
            if isinstance(module, nn.Linear):
                nan = values.reshape(len(values), -1, values.shape[-1]).amax(1).isnan()  # the maximum with NaN is NaN
            else:
                nan = values.reshape(*values.shape[:2], -1).amax(2).isnan()
            nan_channels[name] = nan_channels.get(name, torch.zeros_like(nan)) | nan
            ends = _weighted(module)
            if _is_batched(module, values) and len(values) == len(codes) and (ends or not nan.any()):
                shortened.add(module)
                values = values[:1]
            return (values.nan_to_num() if ends else values, *inputs[1:])

        return hook

    def repeat(module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        if module not in shortened:
            return output
        shortened.remove(module)
        return output.expand(len(codes), *output.shape[1:]).contiguous()

    modules = {name: module for name, module in network.named_modules() if _weighted(module) or _passes(module)}
    handles = [module.register_forward_pre_hook(observe(name)) for name, module in modules.items()]
    handles += [module.register_forward_hook(repeat) for module in modules.values()]
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
    between: dict[str, Tensor] = {}
    consumers: dict[str, Tensor] = {}
    for name, nan in nan_channels.items():
        if not nan.any():
            continue
        columns = _columns(nan, units)
        if columns is None or not resizable(modules[name]):
            return None
        (consumers if _weighted(modules[name]) else between)[name] = columns
    if not consumers or layer in consumers:
        return None
    return Group(units, {layer: torch.arange(units)[:, None]}, between, consumers)


def drop(network: nn.Module, group: Group, removed: Iterable[int]) -> None:
    """Remove units from the layers of a group, from those in between and from the consumers."""
    remaining = torch.ones(group.units, dtype=torch.bool)
    remaining[list(removed)] = False
    select(network, [group], [remaining])


def select(network: nn.Module, groups: Sequence[Group], remaining: Sequence[Tensor]) -> None:
    """Keep some units of several groups, and remove the others at once: groups may have layers in common.

    Args:
        network: it is changed.
        groups: groups of this network.
        remaining: which units of each group remain, (units,) bool.
    """
    channels_of: dict[tuple[str, bool], Tensor] = {}
    for group, mask in zip(groups, remaining, strict=True):
        for outputs, layers in ((True, {**group.layers, **group.between}), (False, group.consumers)):
            for name, columns in layers.items():
                size = layer_sizes(network.get_submodule(name))[outputs]
                channels = channels_of.setdefault((name, outputs), torch.ones(size, dtype=torch.bool))
                channels[columns.cpu()[~mask.cpu()]] = False
    for (name, outputs), channels in channels_of.items():
        if bool(channels.all()):
            continue
        indices = channels.nonzero().squeeze(1)
        select_units(network, name, outputs=indices) if outputs else select_units(network, name, inputs=indices)


def _merged(single: list[Group]) -> list[Group]:
    """Groups of several layers: units of two layers belong together if they reach the same channel of a layer."""
    units: dict[tuple[str, int], int] = {}  # a number for each layer's unit
    channels: dict[tuple[str, str, int], int] = {}  # and for each channel that they reach
    edges: list[tuple[int, int]] = []
    for group in single:
        (layer,) = group.layers
        for kind, reached in (("between", group.between), ("consumers", group.consumers)):
            for name, positions_of_units in reached.items():
                for unit, positions in enumerate(positions_of_units.tolist()):
                    number = units.setdefault((layer, unit), len(units))
                    edges += [(number, channels.setdefault((kind, name, p), len(channels))) for p in positions]
    if not edges:
        return []
    size = len(units) + len(channels)
    rows, columns = np.array(edges).T
    graph = coo_matrix((np.ones(len(edges)), (rows, len(units) + columns)), (size, size))
    _, labels = connected_components(graph, directed=False)
    members: dict[int, list[tuple[str, str, int]]] = defaultdict(list)
    for (layer, unit), number in units.items():
        members[int(labels[number])].append(("layers", layer, unit))
    for channel, number in channels.items():
        members[int(labels[len(units) + number])].append(channel)
    alike: dict[tuple[tuple[tuple[str, str], int], ...], list[list[tuple[str, str, int]]]] = defaultdict(list)
    for component in members.values():
        alike[tuple(sorted(Counter((kind, name) for kind, name, _ in component).items()))].append(component)
    return [_group(components) for components in alike.values()]


def _group(components: list[list[tuple[str, str, int]]]) -> Group:
    """The group whose units are these components, which have the same numbers of channels in the same layers."""
    tensors: dict[tuple[str, str], list[list[int]]] = defaultdict(list)
    for component in components:
        positions: dict[tuple[str, str], list[int]] = defaultdict(list)
        for kind, name, channel in component:
            positions[kind, name].append(channel)
        for key, channels in positions.items():
            tensors[key].append(channels)
    of_kind: dict[str, dict[str, Tensor]] = {"layers": {}, "between": {}, "consumers": {}}
    for (kind, name), rows in tensors.items():
        of_kind[kind][name] = torch.tensor(rows)
    return Group(len(components), **of_kind)


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


def _passes(module: nn.Module) -> bool:
    """Whether a layer has weights and each of its outputs depends on one channel only."""
    return isinstance(module, _BatchNorm) or depthwise(module)


def _is_batched(module: nn.Module, inputs: Tensor) -> bool:
    """Whether a layer computes each entry of the first dimension of its inputs by itself, in eval mode."""
    maps = type(module) in (nn.Conv2d, nn.BatchNorm2d) and inputs.ndim == 4
    return maps or (type(module) is nn.Linear and inputs.ndim > 1)


def _weighted(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d | nn.Linear) and resizable(module) and not depthwise(module)


def _is_whole(network: nn.Module, group: Group, example: Tensor) -> bool:
    """Whether removing a unit, or every other one, equals setting the weights that read them to 0."""
    keys = Counter(id(parameter) for _, parameter in network.named_parameters(remove_duplicate=False))
    changed = (network.get_submodule(name) for name in (*group.layers, *group.between, *group.consumers))
    if any(keys[id(parameter)] > 1 for module in changed for parameter in module.parameters()):
        return False  # shared with another layer, which would not change
    return all(_equals_unread(network, group, removed, example) for removed in ([0], list(range(0, group.units, 2))))


def _equals_unread(network: nn.Module, group: Group, removed: list[int], example: Tensor) -> bool:
    with torch.no_grad():
        with _restored(network):
            for name, columns in group.consumers.items():
                consumer = network.get_submodule(name)
                weight = consumer.get_parameter("weight").clone()
                weight[:, columns[removed].flatten()] = 0
                consumer.weight = nn.Parameter(weight)
            with eval_mode(network):
                expected = first_tensor(network(example))
        with _restored(network):
            drop(network, group, removed)
            try:
                with eval_mode(network):
                    actual = first_tensor(network(example))
            except NETWORK_ERRORS:  # another operation needs the unit: a view, a padding of fixed channels
                return False
    if expected is None or actual is None or actual.shape != expected.shape:
        return False
    return torch.allclose(actual, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@contextmanager
def _restored(network: nn.Module) -> Iterator[None]:
    """Afterwards, give all layers their present tensors and attributes: much faster than a copy of the network."""
    states = [
        (module, {**vars(module), "_parameters": dict(module._parameters), "_buffers": dict(module._buffers)})
        for module in network.modules()
    ]
    try:
        yield
    finally:
        for module, attributes in states:
            vars(module).clear()
            vars(module).update(attributes)
