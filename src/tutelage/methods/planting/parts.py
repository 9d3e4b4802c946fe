"""Layers whose existing and new units are separate parameters, so that an optimizer can train the new ones alone.

A mask on the gradients would not freeze the existing entries of a tensor: momentum, Adam and weight decay move entries
whose gradient is 0.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from tutelage.errors import NETWORK_ERRORS
from tutelage.models.groups import Group, group_of, groups
from tutelage.models.modes import eval_mode
from tutelage.models.outputs import first_tensor
from tutelage.models.surgery.resize import depthwise, layer_sizes
from tutelage.models.surgery.widen import insert_units, insertion_order


@dataclass(frozen=True)
class Planting:
    """New units, and the layers that change with them: names with the order of their units as in ``insert_units``.

    Attributes:
        layers: the ``nn.Conv2d`` and ``nn.Linear`` that get new outputs; several if their outputs are added.
        between: the batch normalisations and depthwise convolutions that the units pass.
        consumers: the layers that read the units, with the order of their inputs.
    """

    layers: Mapping[str, Tensor]
    between: Mapping[str, Tensor]
    consumers: Mapping[str, Tensor]


class OldAndNew(nn.Module):
    """A parametrization: the existing entries of a tensor, concatenated with new ones.

    Args:
        new: the new entries, which become the only parameter.
        dim: along which they are concatenated: 0 for outputs, 1 for inputs.
        order: as in ``insert_units``.
    """

    order: Tensor | None

    def __init__(self, new: Tensor, dim: int, order: Tensor) -> None:
        super().__init__()
        self.new, self.dim = nn.Parameter(new), dim
        in_order = bool((order[1:] > order[:-1]).all())
        self.register_buffer("order", None if in_order else order, persistent=False)

    def forward(self, old: Tensor) -> Tensor:
        """The whole tensor."""
        whole = torch.cat([old, self.new], self.dim)
        return whole if self.order is None else whole.index_select(self.dim, self.order)


class OldAndNewNorm(nn.Module):
    """A batch normalisation for existing channels, and another for new ones.

    A frozen one is in eval mode: the existing channels have their statistics, and the new ones their own.

    Args:
        old: of the existing channels.
        order: of the channels, as in ``insert_units``.
    """

    order: Tensor
    of_old: Tensor
    of_new: Tensor

    def __init__(self, old: _BatchNorm, order: Tensor) -> None:
        super().__init__()
        self.old, self.new = old, _new_norm(old, len(order) - old.num_features)
        self.register_buffer("order", order, persistent=False)
        places = order.argsort()
        self.register_buffer("of_old", places[: old.num_features].clone(), persistent=False)
        self.register_buffer("of_new", places[old.num_features :].clone(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) to the same shape."""
        outputs = [self.old(x.index_select(1, self.of_old)), self.new(x.index_select(1, self.of_new))]
        return torch.cat(outputs, 1).index_select(1, self.order)


def find_planting(
    network: nn.Module, layer: str, count: int, example: Tensor, *, coupled: bool = False
) -> Planting | None:
    """How ``count`` units can be added to a layer; ``None`` if the next layers do not read its units separately.

    Args:
        network: inputs to logits.
        layer: the name of a layer.
        count: the number of new units.
        example: (B, ...), normalised inputs.
        coupled: add them also to the layers whose outputs are added to that of the layer.
    """
    if coupled:
        group = next((group for group in groups(network, example) if layer in group.layers), None)
    else:
        group = group_of(network, layer, example)
    return None if group is None else _planting(network, group, count)


def plantable(network: nn.Module, example: Tensor, *, coupled: bool = False) -> list[str]:
    """The convolutions and linear layers that can get new units, in the order of definition.

    It is verified on a copy that new units which nothing reads do not change the output, and that the output is the
    same with separate and with joined parts.

    Args:
        network: inputs to logits; it is not changed.
        example: (B, ...), normalised inputs.
        coupled: instead, the first layers of groups that sums couple.
    """
    if coupled:
        candidates = {next(iter(group.layers)): group for group in groups(network, example) if len(group.layers) > 1}
    else:
        layers = [
            name for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear) and name
        ]
        candidates = {name: group for name in layers if (group := group_of(network, name, example)) is not None}
    return [name for name, group in candidates.items() if _can_be_planted(network, group, example)]


def plant(network: nn.Module, planting: Planting, generator: torch.Generator) -> None:
    """Add new units as separate parameters; the function of the network does not change.

    New filters (p, C_in, k, k) are normal with variance 2 / (C_in k^2) (Kaiming), new biases 0. A new batch
    normalisation has scale 1 and shift 0. The new input slices of the consumers (C_out, p, k, k) are 0: were the
    filters 0 as well, both gradients would be 0.
    """
    for name, order in {**planting.layers, **planting.between}.items():
        module = network.get_submodule(name)
        if isinstance(module, _BatchNorm):
            network.set_submodule(name, OldAndNewNorm(module, order.to(module.weight.device)))
            continue
        weight, bias = module.get_parameter("weight"), getattr(module, "bias", None)
        filters = torch.empty(len(order) - len(weight), *weight.shape[1:])
        nn.init.kaiming_normal_(filters, nonlinearity="relu", generator=generator)
        _separate(module, "weight", filters.to(weight), 0, order.to(weight.device))
        if bias is not None:
            _separate(module, "bias", bias.new_zeros(len(filters)), 0, order.to(weight.device))
        if depthwise(module):
            module.groups = len(order)  # type: ignore[assignment]
    for name, order in planting.consumers.items():
        consumer = network.get_submodule(name)
        weight = consumer.get_parameter("weight")
        zeros = weight.new_zeros(len(weight), len(order) - weight.shape[1], *weight.shape[2:])
        _separate(consumer, "weight", zeros, 1, order.to(weight.device))


def new_parameters(network: nn.Module) -> frozenset[str]:
    """The names of the parameters of planted units."""
    modules = dict(network.named_modules())
    norms = tuple(f"{name}.new." for name, module in modules.items() if isinstance(module, OldAndNewNorm))
    entries = {f"{name}.new" for name, module in modules.items() if isinstance(module, OldAndNew)}
    return frozenset(name for name, _ in network.named_parameters() if name in entries or name.startswith(norms))


def join(network: nn.Module, planting: Planting) -> None:
    """Replace separate parts by ordinary layers of the new sizes, which the network's record has as ``widen``.

    The output remains the same up to rounding, and the existing entries of all tensors in every bit.
    """
    for name, order in {**planting.layers, **planting.between}.items():
        module = network.get_submodule(name)
        if isinstance(module, OldAndNewNorm):
            network.set_submodule(name, module.old)
            values = dict(module.new.state_dict())
        else:
            values = _removed(module)
        insert_units(network, name, outputs=order, values=values)
    for name, order in planting.consumers.items():
        insert_units(network, name, inputs=order, values=_removed(network.get_submodule(name)))


def _planting(network: nn.Module, group: Group, count: int) -> Planting | None:
    """How ``count`` units can be added; ``None`` if new channels of a normalisation would have nothing to train."""

    def orders(layers: Mapping[str, Tensor], *, of_outputs: bool) -> dict[str, Tensor]:
        sizes = {name: layer_sizes(network.get_submodule(name))[of_outputs] for name in layers}
        return {name: insertion_order(columns, sizes[name], count) for name, columns in layers.items()}

    if any(network.get_submodule(name).weight is None for name in group.between):
        return None
    return Planting(
        orders(group.layers, of_outputs=True),
        orders(group.between, of_outputs=True),
        orders(group.consumers, of_outputs=False),
    )


def _separate(module: nn.Module, name: str, new: Tensor, dim: int, order: Tensor) -> None:
    """Divide a parameter into its present entries and new ones."""
    part = OldAndNew(new, dim, order)
    parametrize.register_parametrization(module, name, part, unsafe=True)  # unsafe: it changes the shape


def _removed(module: nn.Module) -> dict[str, Tensor]:
    """Remove the new entries from the parameters of a layer; returns them by the parameter's name."""
    parametrizations: nn.ModuleDict = module.parametrizations  # type: ignore[assignment]
    values = {name: part[0].new.detach() for name, part in parametrizations.items()}  # type: ignore[index]
    for name in values:
        parametrize.remove_parametrizations(module, name, leave_parametrized=False)
    for name in ("weight", "bias"):  # in the order of the layer's own state_dict
        module._parameters[name] = module._parameters.pop(name)
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        module.groups = module.in_channels
    return values


def _new_norm(old: _BatchNorm, count: int) -> _BatchNorm:
    """A batch normalisation of ``count`` channels with the settings of ``old``, as it is before training."""
    new = copy.deepcopy(old)
    new.num_features = count
    new.weight, new.bias = nn.Parameter(old.weight.new_ones(count)), nn.Parameter(old.weight.new_zeros(count))
    if old.running_mean is not None:
        new.running_mean, new.running_var = old.running_mean.new_zeros(count), old.running_mean.new_ones(count)
    new.reset_running_stats()
    return new


def _can_be_planted(network: nn.Module, group: Group, example: Tensor) -> bool:
    planting = _planting(network, group, 2)
    if planting is None:
        return False
    generator = torch.Generator().manual_seed(0)
    separate = copy.deepcopy(network)
    try:
        plant(separate, planting, generator)
        with eval_mode(network), eval_mode(separate), torch.no_grad():
            expected, unread = first_tensor(network(example)), first_tensor(separate(example))
            for name in planting.consumers:
                new = separate.get_submodule(name).parametrizations.weight[0].new  # type: ignore[union-attr, index]
                new.copy_(torch.randn(new.shape, generator=generator))  # type: ignore[union-attr]
            read = first_tensor(separate(example))
            join(separate, planting)
            joined = first_tensor(separate(example))
    except NETWORK_ERRORS:  # another operation depends on the number of units: a view, a sum with another branch
        return False
    return _close(unread, expected) and _close(joined, read)


def _close(actual: Tensor | None, expected: Tensor | None) -> bool:
    if actual is None or expected is None or actual.shape != expected.shape:
        return False
    return torch.allclose(actual, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
