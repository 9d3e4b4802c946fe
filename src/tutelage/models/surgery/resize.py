"""Removing inputs and outputs of a layer, as in pruning."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tutelage.errors import TutelageError, unknown
from tutelage.models.surgery import applied_operations, record_operations
from tutelage.models.surgery.mask import Masked


def apply(network: nn.Module, example: Tensor, *, layer: str, inputs: int, outputs: int) -> nn.Module:
    """Reduce a layer to these sizes, so that it fits the weights of a pruned network.

    Args:
        network: it is changed and returned.
        example: not used.
        layer: the name of an ``nn.Conv2d`` of one group, an ``nn.Linear``, or a batch normalisation or a depthwise
            convolution (whose two sizes are equal).
        inputs, outputs: the number of channels or features; the first ones remain.

    Raises:
        TutelageError: there is no such layer, or it has another type or is smaller than this.
    """
    module = resizable_layer(network, layer, "resize")
    sizes = layer_sizes(module)
    for name, new, old in (("inputs", inputs, sizes[0]), ("outputs", outputs, sizes[1])):
        if not isinstance(new, int) or not 1 <= new <= old:
            raise TutelageError(f"layer {layer!r} has {old} {name}; it can keep 1 to {old} of them, not {new}")
    select_units(network, layer, inputs=torch.arange(inputs), outputs=torch.arange(outputs))
    return network


def resizable_layer(network: nn.Module, layer: str, verb: str) -> nn.Module:
    """The layer of this name.

    Raises:
        TutelageError: there is none, or its sizes cannot change.
    """
    if layer not in dict(network.named_modules()) or not layer:
        raise unknown(f"layer to {verb}", layer, [name for name, _ in network.named_modules() if name])
    module = network.get_submodule(layer)
    if not resizable(module):
        raise TutelageError(
            f"cannot {verb} layer {layer!r}, a {type(module).__name__}; only a Conv2d of one group or a depthwise one, "
            "a Linear or a batch normalisation can change its sizes, before its weights are masked or modules attached"
        )
    return module


def resizable(module: nn.Module) -> bool:
    """Whether ``select_units`` supports this layer: by its type, and if it has only a weight and a bias."""
    if isinstance(module, Masked):  # a file could not say which part of the mask remains
        return False
    convolution = isinstance(module, nn.Conv2d) and (module.groups == 1 or depthwise(module))
    supported = convolution or isinstance(module, nn.Linear | _BatchNorm)
    return supported and {name for name, _ in module.named_parameters()} <= {"weight", "bias"}


def depthwise(module: nn.Module) -> bool:
    """Whether a layer is a convolution with a filter of its own for each of several channels."""
    return isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels == module.out_channels


def layer_sizes(module: nn.Module) -> tuple[int, int]:
    """The numbers of inputs and outputs of a resizable layer."""
    inputs, outputs = (int(getattr(module, name)) for name in size_names(module))
    return inputs, outputs


def select_units(
    network: nn.Module, layer: str, *, inputs: Tensor | None = None, outputs: Tensor | None = None
) -> None:
    """Keep only these inputs and outputs (int64 indices) of a layer, in this order; ``None`` keeps all.

    For a batch normalisation or a depthwise convolution give outputs. The network's record of operations has one entry
    per layer.
    """
    module = network.get_submodule(layer)
    of_inputs, of_outputs = size_names(module)
    if inputs is not None and of_inputs != of_outputs:
        _select(module, "weight", 1, inputs)
        setattr(module, of_inputs, len(inputs))
    if outputs is not None:
        for name, _ in [*module.named_parameters(), *module.named_buffers()]:
            _select(module, name, 0, outputs)
        if isinstance(module, nn.Conv2d) and depthwise(module):
            module.groups = module.in_channels = len(outputs)
        setattr(module, of_outputs, len(outputs))
    record_sizes(network, "resize", layer)


def record_sizes(network: nn.Module, operation: str, layer: str) -> None:
    """Add the operation "resize" or "widen" of a layer, with its present sizes, to the network's record.

    It replaces an earlier entry of this operation and layer, unless there is another operation in between: a layer that
    was widened, resized and widened again needs all three entries.
    """
    operations = applied_operations(network)
    for number in range(len(operations) - 1, -1, -1):
        entry = operations[number]
        if entry["operation"] not in ("resize", "widen"):
            break
        if entry["layer"] == layer:
            if entry["operation"] == operation:
                del operations[number]
            break
    sizes = dict(zip(("inputs", "outputs"), layer_sizes(network.get_submodule(layer)), strict=True))
    record_operations(network, [*operations, {"operation": operation, "layer": layer, **sizes}])


def size_names(module: nn.Module) -> tuple[str, str]:
    """The attributes of a resizable layer that hold its numbers of inputs and outputs."""
    if depthwise(module):
        return "out_channels", "out_channels"
    if isinstance(module, nn.Conv2d):
        return "in_channels", "out_channels"
    return ("in_features", "out_features") if isinstance(module, nn.Linear) else ("num_features", "num_features")


def _select(module: nn.Module, name: str, dim: int, index: Tensor) -> None:
    tensor = getattr(module, name)
    if tensor.ndim <= dim:  # num_batches_tracked
        return
    selected = tensor.detach().index_select(dim, index.to(tensor.device))
    if isinstance(tensor, nn.Parameter):
        setattr(module, name, nn.Parameter(selected, tensor.requires_grad))
    else:
        setattr(module, name, selected)
