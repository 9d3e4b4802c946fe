"""The inputs of a network: one tensor, several inputs by position, or several by name."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.data.batch import UNLABELLED, Batch
from tutelage.errors import TutelageError

NO_INDEX = torch.iinfo(torch.int64).max  # outside of every table, so that a look-up fails


def call_arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and the keyword arguments with which to call a network.

    A tuple or list holds positional inputs, a mapping keyword inputs, and anything else is the only input. If the only
    input is itself a tuple, list or mapping, it must be in a tuple of length one.
    """
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs), {}) if isinstance(inputs, tuple | list) else ((inputs,), {})


def example_tensor(inputs: Any) -> Tensor:
    """The tensor that represents the inputs: the first image, or else the first tensor.

    Raises:
        TutelageError: there is no tensor.
    """
    if isinstance(inputs, Tensor):
        return inputs
    positional, named = call_arguments(inputs)
    tensors = [value for value in (*positional, *named.values()) if isinstance(value, Tensor) and value.ndim]
    if not tensors:
        raise TutelageError(
            f"no input is a tensor, but {type(inputs).__name__}; give a tensor, a tuple or a mapping of tensors"
        )
    return next((tensor for tensor in tensors if is_image(tensor)), tensors[0])


def is_image(value: object) -> bool:
    """Whether the value is a batch of images: a floating-point tensor (B, C, H, W)."""
    return isinstance(value, Tensor) and value.ndim == 4 and value.is_floating_point()


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images scaled to another size by an antialiased bilinear filter, as Pillow's; differentiable.

    Both axes are scaled independently, so that images of another ratio of width to height are distorted. Images of this
    size are returned as they are.

    Args:
        images: floating point, (B, C, H, W).
        size: height and width of the result, in pixels.

    Returns:
        (B, C, *size), of the same dtype and within the range of the images' values.

    Raises:
        TutelageError: ``images`` are no floating-point images (B, C, H, W).
    """
    if not is_image(images):
        raise TutelageError(
            f"inputs of shape {tuple(images.shape)} and type {images.dtype} cannot be resized; give floating-point "
            "images (B, C, H, W), or a network without size="
        )
    if tuple(images.shape[2:]) == size:
        return images
    return F.interpolate(images, size, mode="bilinear", antialias=True)


def normalise(inputs: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(inputs - mean) / std along axis 1.

    Args:
        inputs: floating point, (B, C, ...).
        mean, std: (1, C, 1, 1), with C = 1 for all channels alike.

    Raises:
        TutelageError: the inputs have another number of channels.
    """
    channels = max(mean.shape[1], std.shape[1])
    if inputs.ndim < 2 or channels not in (1, inputs.shape[1]):
        expected = "(B, C, ...)" if channels == 1 else f"(B, {channels}, ...), for images (B, {channels}, H, W),"
        raise TutelageError(
            f"Tapped normalises inputs of shape {expected} and was given {tuple(inputs.shape)}; "
            "call its .module for other inputs"
        )
    if inputs.ndim != mean.ndim:
        shape = (1, -1, *[1] * (inputs.ndim - 2))
        mean, std = mean.view(shape), std.view(shape)
    count, width = inputs.shape[1], inputs.shape[-1]
    in_rows = inputs.ndim == 4 and inputs.stride()[1:] == (1, width * count, count)  # memory (B, H, W, C)
    if in_rows and inputs.device.type == "cpu" and not torch.compiler.is_compiling():
        # Row by row, W C values each: the same results several times as fast as channel by channel.
        first, second = (values.expand(1, count, 1, 1).flatten().repeat(width) for values in (mean, std))
        rows: Tensor = (inputs.permute(0, 2, 3, 1).flatten(2) - first).div_(second)
        return rows.reshape(len(rows), inputs.shape[2], width, count).permute(0, 3, 1, 2)
    return (inputs - mean).div_(std)


def sample_count(inputs: Any) -> int:
    """The number of samples B: the length of the first tensor or list."""
    if isinstance(inputs, Tensor):
        return len(inputs)
    positional, named = call_arguments(inputs)
    return next((len(value) for value in (*positional, *named.values()) if isinstance(value, Sized)), 1)


def as_batch(inputs: Any, targets: Any = None) -> Batch:
    """A ``Batch`` of inputs that are not from a ``Data``: without sample indices, and unlabelled if no targets."""
    if isinstance(inputs, Batch):
        return inputs
    count, device = sample_count(inputs), example_tensor(inputs).device
    if targets is None:
        targets = torch.full((count,), UNLABELLED, device=device)
    return Batch(inputs, targets, torch.full((count,), NO_INDEX, device=device), None)
