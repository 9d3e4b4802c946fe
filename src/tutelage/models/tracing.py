"""The layers that run in one forward pass of a network, with their inputs, outputs and resolutions."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.models.inputs import call_arguments, example_tensor
from tutelage.models.modes import eval_mode
from tutelage.models.outputs import first_tensor

MAX_PREFIX_TOKENS = 8  # class and register tokens before the patches


@dataclass(frozen=True, slots=True, eq=False)
class TracedLayer:
    """A layer that ran in the traced pass."""

    name: str
    input: Tensor | None
    output: Tensor
    size: tuple[int, int] | None  # the resolution of a map or a grid of tokens; (T, 1) of the tokens of a text
    is_sequence: bool  # the tokens of a text, which are no patches of an image
    minimum: Tensor | None  # of a map or of tokens
    calls: int  # of the layer in the whole pass
    is_activation: bool  # without weights and submodules, and with other values of the same shape
    has_matrix: bool
    has_weights: bool
    contains_weights: bool  # in itself or in a submodule
    input_version: int  # when the layer began; a higher one later means that the input was overwritten
    version: int  # of the output when the layer returned; likewise


def trace_layers(module: nn.Module, inputs: Any) -> list[TracedLayer]:
    """The calls of submodules that returned a tensor, in the order in which they returned."""
    example, (positional, keywords) = example_tensor(inputs), call_arguments(inputs)
    names = {child: name for name, child in module.named_modules() if name}
    calls: Counter[str] = Counter()
    traced: list[TracedLayer] = []
    map_sizes: list[tuple[int, int]] = []
    versions: list[int] = []  # of the inputs of the layers that are running

    def begin(_: nn.Module, layer_inputs: tuple[Any, ...]) -> None:
        layer_input = first_tensor(layer_inputs)
        versions.append(0 if layer_input is None else layer_input._version)

    def record(child: nn.Module, layer_inputs: tuple[Any, ...], output: Any) -> None:
        tensor, layer_input, input_version = first_tensor(output), first_tensor(layer_inputs), versions.pop()
        calls[names[child]] += 1
        if tensor is None or tensor.shape[:1] != example.shape[:1]:
            return
        if tensor.ndim == 4 and _is_map(tensor, example):
            map_sizes.append((int(tensor.shape[2]), int(tensor.shape[3])))
        # A parametrised layer (weight norm) stores its weights in a child of this name.
        weights = [p for name, p in child.named_parameters() if "." not in name or name.startswith("parametrizations.")]
        size = _resolution(tensor, map_sizes, example)
        traced.append(
            TracedLayer(
                names[child],
                layer_input,
                tensor,
                size,
                is_sequence=_is_text(example) and size is not None,
                minimum=tensor.min() if size is not None and tensor.is_floating_point() else None,
                calls=0,
                is_activation=_is_activation(child, layer_input, input_version, tensor),
                has_matrix=any(p.ndim >= 2 for p in weights),
                has_weights=bool(weights),
                contains_weights=next(child.parameters(), None) is not None,
                input_version=input_version,
                version=tensor._version,
            )
        )

    handles = [child.register_forward_pre_hook(begin) for child in names]
    handles += [child.register_forward_hook(record) for child in names]
    try:
        with eval_mode(module), torch.no_grad():
            module(*positional, **keywords)
    finally:
        for handle in handles:
            handle.remove()
    return [replace(layer, calls=calls[layer.name]) for layer in traced]


def _is_activation(layer: nn.Module, layer_input: Tensor | None, input_version: int, output: Tensor) -> bool:
    """Whether a layer without weights and submodules returns other values than it took, of the same shape."""
    if layer_input is None or layer_input.shape != output.shape or next(layer.children(), None) is not None:
        return False
    if next(layer.parameters(), None) is not None:
        return False
    return layer_input._version != input_version or not torch.equal(layer_input, output)


def _is_map(tensor: Tensor, example: Tensor) -> bool:
    """Whether (B, C, H, W) can be a feature map: no larger than the input and of about its aspect ratio.

    Attention heads (B, heads, N, D) and channels-last maps (B, H, W, C) have four axes too, but are not.
    """
    if example.ndim != 4:  # for vectors and waveforms maps must be named by hand
        return False
    (height, width), (full_height, full_width) = tensor.shape[2:], example.shape[2:]
    ratio = height * full_width / (width * full_height)
    return bool(height <= full_height and width <= full_width and 2 / 3 <= ratio <= 3 / 2)


def _is_text(example: Tensor) -> bool:
    """Whether the inputs are token numbers (B, T)."""
    return example.ndim == 2 and not example.is_floating_point()


def _resolution(tensor: Tensor, map_sizes: list[tuple[int, int]], example: Tensor) -> tuple[int, int] | None:
    """The (height, width) of a map or of the patch grid of a token sequence; ``None`` for others.

    Features (B, T, D) of a text of T tokens have the size (T, 1).
    """
    if _is_text(example):
        is_sequence = tensor.ndim == 3 and tensor.shape[1] == example.shape[1] and tensor.is_floating_point()
        return (int(tensor.shape[1]), 1) if is_sequence else None
    if tensor.ndim == 4:
        size = (int(tensor.shape[2]), int(tensor.shape[3]))
        return size if size != (1, 1) and _is_map(tensor, example) else None
    if tensor.ndim != 3 or example.ndim != 4:
        return None
    tokens = int(tensor.shape[1])
    for height, width in reversed(map_sizes):
        if 1 < height * width <= tokens <= height * width + MAX_PREFIX_TOKENS:
            return height, width
    side = math.isqrt(tokens)
    return (side, side) if side > 1 and tokens - side * side <= 1 else None
