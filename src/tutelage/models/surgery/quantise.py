"""Quantisation of weights and inputs of layers, for training and for deployment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from tutelage.errors import TutelageError, unknown
from tutelage.models.modes import eval_mode
from tutelage.models.outputs import first_tensor
from tutelage.models.quantised import KINDS, Quantised, quantised_layers
from tutelage.models.surgery import append_operation
from tutelage.models.tracing import trace_layers

FEWEST_BITS, MOST_BITS = 2, 8


def apply(
    network: nn.Module,
    example: Tensor,
    *,
    bits: int = 4,
    groups: int = 8,
    edge_bits: int = 8,
    activation_bits: int = 0,
    layers: Sequence[str] | None = None,
) -> nn.Module:
    """Round the weights of convolutions and linear layers to few bits, with a scale for each group of output channels.

        Q(w; s) = s clip(round(w / s), -2^(b-1), 2^(b-1) - 1)

    The output channels of a layer are sorted by max |w| and divided into equal groups. Each group begins with the scale
    of the smallest squared error. The inputs of the layers are rounded to unsigned codes with one scale, and a code for
    0 where they are negative. All scales and the float weights remain trainable by a straight-through estimator
    (``models/quantised.py``). The names of the layer's own weights do not change.

    Only ``nn.Conv2d`` and ``nn.Linear`` themselves are quantised, no subclasses; other layers remain.

    Args:
        network: it is changed.
        example: inputs as the network takes them, (B, ...). With ``activation_bits`` the ranges of the activations are
            determined from them, so they should be real samples.
        bits: b of the weights, 2 to 8.
        groups: G of each layer; 1 is one scale for the layer, and at least the number of channels one for each channel.
        edge_bits: b of the first and of the last layer, 2 to 8.
        activation_bits: of the inputs of the layers, 2 to 8; the two layers at the ends have ``edge_bits``. 0 leaves
            the inputs unchanged.
        layers: the names of the layers, in the order of execution; by default all that run. Weights files record them.

    Raises:
        TutelageError: a number is out of its range, or a layer does not exist, cannot be quantised or is quantised.
    """
    _check(bits, groups, edge_bits, activation_bits)
    if quantised_layers(network):
        raise TutelageError(f"{type(network).__name__} is quantised already; quantise the original network")
    names = quantisable(network, example) if layers is None else [str(layer) for layer in layers]
    known = [name for name, module in network.named_modules() if type(module) in KINDS]
    for name in names:
        if name not in known:
            raise unknown("layer to quantise (an nn.Conv2d or nn.Linear)", name, known)
    if not names:
        raise TutelageError(
            f"{type(network).__name__} has no nn.Conv2d or nn.Linear that runs, so nothing can be quantised; "
            "give it one"
        )
    inputs = _inputs(network, example, names) if activation_bits else {}
    for name in names:
        is_edge = name in (names[0], names[-1])
        layer = network.get_submodule(name)
        layer.__class__ = KINDS[type(layer)]  # in place, so that hooks and shared layers stay as they are
        cast(Quantised, layer).start_quantisation(
            edge_bits if is_edge else bits,
            groups,
            (edge_bits if is_edge else activation_bits) if activation_bits else 0,
            inputs.get(name),
        )
    settings = {"bits": bits, "groups": groups, "edge_bits": edge_bits, "activation_bits": activation_bits}
    append_operation(network, "quantise", **settings, layers=names)
    return network


def quantisable(network: nn.Module, example: Tensor) -> list[str]:
    """The names of the layers that can be quantised, in the order in which they first run."""
    names = dict.fromkeys(layer.name for layer in trace_layers(network, example))
    return [name for name in names if type(network.get_submodule(name)) in KINDS]


def _check(bits: int, groups: int, edge_bits: int, activation_bits: int) -> None:
    ranges = {"bits": bits, "edge_bits": edge_bits} | ({"activation_bits": activation_bits} if activation_bits else {})
    for name, value in ranges.items():
        if not isinstance(value, int) or not FEWEST_BITS <= value <= MOST_BITS:
            zero = " (or 0 for float activations)" if name == "activation_bits" else ""
            raise TutelageError(f"{name} must be {FEWEST_BITS} to {MOST_BITS}{zero}, got {value!r}")
    if not isinstance(groups, int) or groups < 1:
        raise TutelageError(f"groups must be 1 or more, got {groups!r}; 1 is one scale for each layer")


def _inputs(network: nn.Module, example: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """The inputs of these layers for a batch; of a layer that runs several times, those of its last call."""
    inputs: dict[str, Tensor] = {}

    def store(name: str) -> Any:
        def hook(_layer: nn.Module, arguments: tuple[Any, ...]) -> None:
            tensor = first_tensor(arguments)
            if tensor is not None:
                inputs[name] = tensor.detach().clone()

        return hook

    handles = [network.get_submodule(name).register_forward_pre_hook(store(name)) for name in names]
    try:
        with eval_mode(network), torch.no_grad():
            network(example)
    finally:
        for handle in handles:
            handle.remove()
    if missing := [name for name in names if name not in inputs]:
        raise TutelageError(
            f"layer {missing[0]!r} of {type(network).__name__} does not run, so the range of its inputs is unknown; "
            "leave it out"
        )
    return inputs
