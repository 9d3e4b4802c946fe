"""A layer with fewer outputs or inputs, as pruning leaves it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tutelage.errors import TutelageError, unknown
from tutelage.models.surgery import applied_operations, record_operations


def apply(network: nn.Module, example: Tensor, *, layer: str, inputs: int, outputs: int) -> nn.Module:
    """Give a layer these sizes, so that a pruned network's weights fit it.

    Args:
        network: it is changed, and given back.
        example: not needed here.
        layer: the name of an ``nn.Conv2d`` of one group, an ``nn.Linear`` or a batch normalisation (whose two sizes are
            one).
        inputs, outputs: how many channels or features it keeps, the first ones.

    Raises:
        TutelageError: there is no such layer, or it is of another kind or smaller already.
    """
    if layer not in dict(network.named_modules()) or not layer:
        raise unknown("layer to resize", layer, [name for name, _ in network.named_modules() if name])
    module = network.get_submodule(layer)
    if not resizable(module):
        raise TutelageError(
            f"layer {layer!r} is a {type(module).__name__}; only a Conv2d of one group, a Linear or a batch "
            "normalisation can be resized"
        )
    now = layer_sizes(module)
    for what, wanted, there in (("inputs", inputs, now[0]), ("outputs", outputs, now[1])):
        if not isinstance(wanted, int) or not 1 <= wanted <= there:
            raise TutelageError(f"layer {layer!r} has {there} {what}; it can keep 1 to {there} of them, not {wanted}")
    select_units(network, layer, inputs=torch.arange(inputs), outputs=torch.arange(outputs))
    return network


def resizable(module: nn.Module) -> bool:
    """Whether ``select_units`` knows this kind of layer, with nothing of its own beside a weight and a bias."""
    known = isinstance(module, nn.Linear | _BatchNorm) or (isinstance(module, nn.Conv2d) and module.groups == 1)
    return known and {name for name, _ in module.named_parameters()} <= {"weight", "bias"}


def layer_sizes(module: nn.Module) -> tuple[int, int]:
    """How many inputs and outputs a resizable layer has."""
    inputs, outputs = (int(getattr(module, name)) for name in _names(module))
    return inputs, outputs


def select_units(
    network: nn.Module, layer: str, *, inputs: Tensor | None = None, outputs: Tensor | None = None
) -> None:
    """Keep these inputs and outputs (places, int64) of a layer alone, in this order; ``None`` keeps all.

    A batch normalisation's are its outputs. The network's ``surgery`` says so from then on, in one entry a layer.
    """
    module = network.get_submodule(layer)
    of_inputs, of_outputs = _names(module)
    if inputs is not None and of_inputs != of_outputs:
        _select(module, "weight", 1, inputs)
        setattr(module, of_inputs, len(inputs))
    if outputs is not None:
        for name, _ in [*module.named_parameters(), *module.named_buffers()]:
            _select(module, name, 0, outputs)
        setattr(module, of_outputs, len(outputs))
    there = dict(zip(("inputs", "outputs"), layer_sizes(module), strict=True))
    others = [
        entry for entry in applied_operations(network) if (entry["operation"], entry.get("layer")) != ("resize", layer)
    ]
    record_operations(network, [*others, {"operation": "resize", "layer": layer, **there}])


def _names(module: nn.Module) -> tuple[str, str]:
    if isinstance(module, nn.Conv2d):
        return "in_channels", "out_channels"
    return ("in_features", "out_features") if isinstance(module, nn.Linear) else ("num_features", "num_features")


def _select(module: nn.Module, name: str, dim: int, places: Tensor) -> None:
    tensor = getattr(module, name)
    if tensor.ndim <= dim:  # the count of batches
        return
    chosen = tensor.detach().index_select(dim, places.to(tensor.device))
    if isinstance(tensor, nn.Parameter):
        setattr(module, name, nn.Parameter(chosen, tensor.requires_grad))
    else:
        setattr(module, name, chosen)
