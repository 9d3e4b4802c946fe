"""Batch normalisation folded into the layers before it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tutelage.errors import TutelageError, unknown
from tutelage.models.modes import eval_mode
from tutelage.models.outputs import first_tensor
from tutelage.models.surgery import append_operation

_FOLDABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def apply(
    network: nn.Module, example: Tensor, *, layers: Sequence[str] | None = None, norms: Sequence[str] | None = None
) -> nn.Module:
    """Multiply the weights of layers by the factors of the batch normalisations that follow them.

        W <- W gamma / sqrt(var + eps),   b <- (b - mean) gamma / sqrt(var + eps) + beta

    The network then computes what it computed in eval mode; the normalisation becomes the identity, also in training.
    A layer without a bias gets one. Normalisations that do not directly follow a convolution or a linear layer, or
    whose input something else reads, remain.

    Args:
        network: it is changed.
        example: floating-point inputs as the network takes them, (B, ...).
        layers, norms: the names of the layers and of the normalisations after them; by default all that can be folded,
            found in a forward pass. Weights files record both.

    Raises:
        TutelageError: there is no such layer, it is of another type, or the numbers differ.
    """
    if layers is None or norms is None:
        pairs = foldable(network, example)
    elif len(layers) != len(norms):
        raise TutelageError(f"fold takes as many layers as normalisations, got {len(layers)} and {len(norms)}")
    else:
        pairs = [(str(layer), str(norm)) for layer, norm in zip(layers, norms, strict=True)]
    names = [name for name, _ in network.named_modules() if name]
    for layer, norm in pairs:
        if missing := [name for name in (layer, norm) if name not in names]:
            raise unknown("layer to fold", missing[0], names)
        _fold(network, layer, norm)
    append_operation(network, "fold", layers=[layer for layer, _ in pairs], norms=[norm for _, norm in pairs])
    return network


def _fold(network: nn.Module, name: str, norm_name: str) -> None:
    layer, norm = network.get_submodule(name), network.get_submodule(norm_name)
    if type(layer) not in _FOLDABLE or not isinstance(norm, _BatchNorm) or norm.running_var is None:
        raise TutelageError(
            f"layers {name!r} ({type(layer).__name__}) and {norm_name!r} ({type(norm).__name__}) cannot be folded; "
            "fold a batch normalisation with running statistics into a convolution or a linear layer"
        )
    weight, bias = layer.get_parameter("weight"), layer._parameters["bias"]
    if len(weight) != norm.num_features:
        raise TutelageError(
            f"{norm_name!r} normalises {norm.num_features} channels and {name!r} has {len(weight)}; name its own layer"
        )
    with torch.no_grad():  # in float64: rounding is that of the result alone
        factor = (norm.get_buffer("running_var").double() + norm.eps).rsqrt()
        shift = -norm.get_buffer("running_mean").double() + (0.0 if bias is None else bias.double())
        if norm.affine:
            factor = factor * norm.weight.double()
        shift = shift * factor + (norm.bias.double() if norm.affine else 0.0)
        weight.copy_(weight.double() * factor.view(-1, *(1,) * (weight.ndim - 1)))
    layer.register_parameter("bias", nn.Parameter(shift.to(weight), weight.requires_grad))
    network.set_submodule(norm_name, nn.Identity())


def foldable(network: nn.Module, example: Tensor) -> list[tuple[str, str]]:
    """The layers and the batch normalisations that can be folded into them, by name, in the order of execution.

    The normalisation is the only reader of the layer's output, as far as gradients flow; both run once.

    Args:
        network: inputs to logits; it is not changed.
        example: floating-point inputs as the network takes them, (B, ...).
    """
    names = {module: name for name, module in network.named_modules()}
    calls: Counter[nn.Module] = Counter()
    outputs: dict[Any, nn.Module] = {}  # by the node of the gradient's graph
    inputs: dict[nn.Module, Any] = {}

    def record(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        calls[module] += 1
        if isinstance(module, _BatchNorm):
            inputs[module] = arguments[0].grad_fn
        else:
            outputs[output.grad_fn] = module

    watched = [m for m in names if type(m) in _FOLDABLE or (isinstance(m, _BatchNorm) and m.running_var is not None)]
    handles = [module.register_forward_hook(record) for module in watched]
    try:
        with eval_mode(network), torch.enable_grad():
            # A network may change its input in place, but not a leaf.
            logits = first_tensor(network(example.detach().clone().requires_grad_() * 1))
    finally:
        for handle in handles:
            handle.remove()
    readers = _readers(None if logits is None else logits.grad_fn)
    pairs = ((outputs.get(node), norm, node) for norm, node in inputs.items())
    return [
        (names[layer], names[norm])
        for layer, norm, node in pairs
        if layer is not None and calls[layer] == calls[norm] == 1 and readers[node] == 1
    ]


def _readers(root: Any) -> Counter[Any]:
    """How many operations read the output of each node of a gradient's graph."""
    readers: Counter[Any] = Counter()
    seen, waiting = set(), [root]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for following, _ in node.next_functions:
            readers[following] += 1
            waiting.append(following)
    return readers
