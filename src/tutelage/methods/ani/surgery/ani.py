"""Adaptive noise after the hidden layers of a network (Tan, Elovici, Binder, ICPR 2020)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from tutelage.errors import TutelageError, unknown
from tutelage.methods.ani.layer import AdaptiveNoise, Per, Source
from tutelage.models.attach import attach_after, detach, find_classifier
from tutelage.models.surgery import append_operation, applied_operations, record_operations
from tutelage.models.tracing import TracedLayer, trace_layers

_NAME = "ani"


def apply(
    network: nn.Module,
    example: Tensor,
    *,
    scale: float,
    per: Per = "channel",
    source: Source = "running",
    learnable: int = 0,
) -> nn.Module:
    """Put an ``AdaptiveNoise`` after each hidden convolution or linear layer, before the non-linearity.

    If batch normalisation follows the layer directly, the noise is after it, since it would undo a part of the noise.
    The classifier has none. The network's own keys do not change; the keys of the noise are under ``ani`` of a layer.

    Args:
        network: inputs to logits, with an ``nn.Linear`` as its last layer; it is changed.
        example: inputs as the network takes them, (B, ...).
        scale, per, source: see ``AdaptiveNoise``.
        learnable: 1 for a trained s per layer.

    Raises:
        TutelageError: the network has no hidden layer or no classifier, or has such noise already, or a setting is
            invalid.
    """
    if not 0 <= scale < float("inf") or (learnable and scale == 0):
        kind = "positive and finite if it is learnable" if learnable else "0 or more and finite"
        raise TutelageError(f"the scale of adaptive noise must be {kind}, got {scale}; 0.25 is the default")
    for noun, value, known in (("per", per, get_args(Per)), ("source", source, get_args(Source))):
        if value not in known:
            raise unknown(f"{noun} of adaptive noise", str(value), known)
    places = list(_places(network, example))
    if not places:
        raise TutelageError(
            f"{type(network).__name__} has no convolution or linear layer before its classifier, and so no place for "
            "noise; use a network with hidden layers"
        )
    for layer, channels, axis in places:
        noise = AdaptiveNoise(scale, channels, axis, per=per, source=source, learnable=bool(learnable))
        attach_after(network, layer, _NAME, noise)
    append_operation(network, _NAME, scale=scale, per=per, source=source, learnable=int(learnable))
    return network


def remove(network: nn.Module) -> nn.Module:
    """Remove the noise from the network, which is changed."""
    for name, module in list(network.named_modules()):
        if isinstance(module, AdaptiveNoise):
            detach(network, name.removesuffix(_NAME).removesuffix("."), _NAME)
    record_operations(network, [op for op in applied_operations(network) if op["operation"] != _NAME])
    return network


def _places(network: nn.Module, example: Tensor) -> Iterator[tuple[str, int, int]]:
    """The layers that noise follows, in the order in which they run, each with its channels and their axis."""
    classifier = find_classifier(network, example)
    traced = trace_layers(network, example)
    norms = [layer for layer in traced if isinstance(network.get_submodule(layer.name), _BatchNorm)]
    seen: set[str] = set()
    for layer in traced:
        module = network.get_submodule(layer.name)
        if layer.name in {classifier, *seen} or not isinstance(module, _ConvNd | nn.Linear):
            continue
        seen.add(layer.name)
        last = next((norm for norm in norms if _follows(norm, layer)), layer)
        axis = 1 if isinstance(module, _ConvNd) else layer.output.ndim - 1
        yield last.name, int(layer.output.shape[axis]), axis


def _follows(norm: TracedLayer, layer: TracedLayer) -> bool:
    return norm.input is not None and norm.input is layer.output
