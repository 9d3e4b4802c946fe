"""Adding inputs and outputs to a layer, as in networks that grow: the reverse of ``resize``."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tutelage.errors import TutelageError
from tutelage.models.surgery.resize import depthwise, layer_sizes, record_sizes, resizable_layer, size_names

MAX_UNITS = 2**20  # of a layer; a file may hold any number


def apply(network: nn.Module, example: Tensor, *, layer: str, inputs: int, outputs: int) -> nn.Module:
    """Enlarge a layer to these sizes, so that it fits the weights of a network that has grown.

    New weights and biases are 0, new scales and variances of a batch normalisation 1.

    Args:
        network: it is changed and returned.
        example: not used.
        layer: the name of an ``nn.Conv2d`` of one group, an ``nn.Linear``, or a batch normalisation or a depthwise
            convolution (whose two sizes are equal).
        inputs, outputs: the number of channels or features; new ones follow those that exist.

    Raises:
        TutelageError: there is no such layer, or it has another type or is larger than this.
    """
    module = resizable_layer(network, layer, "widen")
    sizes = layer_sizes(module)
    for name, new, old in (("inputs", inputs, sizes[0]), ("outputs", outputs, sizes[1])):
        if not isinstance(new, int) or not old <= new <= MAX_UNITS:
            raise TutelageError(f"layer {layer!r} has {old} {name}; it can get {old} to {MAX_UNITS} of them, not {new}")
    if inputs != outputs and (isinstance(module, _BatchNorm) or depthwise(module)):
        raise TutelageError(f"layer {layer!r} has as many inputs as outputs, not {inputs} and {outputs}")
    insert_units(network, layer, inputs=torch.arange(inputs), outputs=torch.arange(outputs))
    return network


def insert_units(
    network: nn.Module,
    layer: str,
    *,
    inputs: Tensor | None = None,
    outputs: Tensor | None = None,
    values: Mapping[str, Tensor] = MappingProxyType({}),
) -> None:
    """Insert inputs and outputs into a layer; the existing entries of its tensors do not change in any bit.

    For a batch normalisation or a depthwise convolution give outputs. The network's record of operations has the sizes
    of the layer, and not where the new units are.

    Args:
        network: it is changed.
        layer: the name of a layer that ``resize`` supports.
        inputs, outputs: int64 indices into the existing units followed by the new ones, in the order of the widened
            layer; ``None`` adds none.
        values: new entries by the name of the tensor, if only inputs or only outputs are added. By default 0, and 1 for
            scales and variances of a batch normalisation.
    """
    module = network.get_submodule(layer)
    of_inputs, of_outputs = size_names(module)
    if inputs is not None and of_inputs != of_outputs:
        _insert(module, "weight", 1, inputs, values)
        setattr(module, of_inputs, len(inputs))
    if outputs is not None:
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, _ in tensors:
            _insert(module, name, 0, outputs, values)
        if isinstance(module, nn.Conv2d) and depthwise(module):
            module.groups = module.in_channels = len(outputs)
        setattr(module, of_outputs, len(outputs))
    record_sizes(network, "widen", layer)


def insertion_order(columns: Tensor, size: int, count: int) -> Tensor:
    """Where the columns of new units are among the inputs of a layer, if the new units follow the existing ones.

    A unit has several columns if maps were flattened or concatenated. The new units' columns follow each contiguous run
    of columns of the last unit: one run if each channel's positions are contiguous, (C, H, W), and one for each
    position if the channels of a position are, (H, W, C).

    Args:
        columns: (units, positions) int64, ascending: the columns of each existing unit, at least two units.
        size: the number of columns of the layer.
        count: the number of new units.

    Returns:
        (size + count positions,) int64, for ``insert_units``: indices into the existing columns followed by those of
        the first new unit, the second, and so on.
    """
    last, positions = columns[-1].tolist(), columns.shape[1]
    order: list[int] = []
    run: list[int] = []  # numbers of positions
    for column in range(size):
        order.append(column)
        if column in last:
            run.append(last.index(column))
            if column + 1 not in last:
                order += [size + unit * positions + position for unit in range(count) for position in run]
                run = []
    return torch.tensor(order)


def _insert(module: nn.Module, name: str, dim: int, order: Tensor, values: Mapping[str, Tensor]) -> None:
    tensor = getattr(module, name)
    if tensor.ndim <= dim:  # num_batches_tracked
        return
    shape = list(tensor.shape)
    shape[dim] = len(order) - shape[dim]
    is_scale = name == "running_var" or (name == "weight" and isinstance(module, _BatchNorm))
    new = values[name] if name in values else tensor.new_full(shape, float(is_scale))
    widened = torch.cat([tensor.detach(), new.detach().to(tensor)], dim).index_select(dim, order.to(tensor.device))
    if isinstance(tensor, nn.Parameter):
        setattr(module, name, nn.Parameter(widened, tensor.requires_grad))
    else:
        setattr(module, name, widened)
