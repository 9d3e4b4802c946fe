"""A neural filter in front of the encoder of a bottleneck."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tutelage.errors import TutelageError
from tutelage.methods.ghnd.neural_filter import Gate, NeuralFilter
from tutelage.methods.ghnd.surgery.bottleneck import Bottleneck
from tutelage.models.modes import eval_mode
from tutelage.models.roles import add_role
from tutelage.models.surgery import append_operation

SMALLEST = 12  # pixels of a side that the three convolutions need

ROLE = "filter"


def apply(network: nn.Module, example: Tensor, *, layer: str) -> nn.Module:
    """Add a ``NeuralFilter`` with new weights to a bottleneck; its logits have the role ``filter``.

    In eval mode the network returns the empty prediction for images whose probability of an object is below the
    filter's ``threshold``, which is 0 at first.

    Args:
        network: a detector of centre points; it is changed.
        example: inputs as the network takes them, (B, ...).
        layer: the name of the bottleneck.

    Raises:
        TutelageError: this layer is no bottleneck, or its input is too small.
    """
    bottleneck = network.get_submodule(layer) if layer in dict(network.named_modules()) else None
    if not isinstance(bottleneck, Bottleneck):
        raise TutelageError(f"layer {layer!r} of {type(network).__name__} is no bottleneck; apply that operation first")
    if bottleneck.filter is not None:
        raise TutelageError(f"the bottleneck {layer!r} has a filter already")
    inputs: list[Tensor] = []
    handle = bottleneck.register_forward_pre_hook(lambda _, values: inputs.append(values[0]))
    try:
        with eval_mode(network), torch.no_grad():
            network(example)
    finally:
        handle.remove()
    height, width = inputs[0].shape[2:]
    if min(height, width) < SMALLEST:
        raise TutelageError(
            f"the neural filter needs a map of {SMALLEST}x{SMALLEST} or more before layer {layer!r}, and it has "
            f"{height}x{width}; use larger images"
        )
    module = NeuralFilter(inputs[0].shape[1], (height, width)).to(inputs[0].device, inputs[0].dtype)
    bottleneck.filter = module.train(network.training)
    network.register_forward_hook(Gate(f"{layer}.filter"))
    add_role(network, ROLE, f"{layer}.filter")
    append_operation(network, "neural_filter", layer=layer)
    return network
