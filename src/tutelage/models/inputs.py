"""What a network is given: one tensor, several inputs by position, or several by name."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Any

import torch
from torch import Tensor

from tutelage.data.batch import UNLABELLED, Batch
from tutelage.errors import TutelageError

NO_INDEX = torch.iinfo(torch.int64).max  # beyond every table, so that a look-up fails


def call_arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and the keyword arguments of a network.

    A tuple or a list holds positional inputs, a mapping keyword inputs, and anything else is the one input. A network
    whose one input is itself a tuple, a list or a mapping is given it in a tuple of one.
    """
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs), {}) if isinstance(inputs, tuple | list) else ((inputs,), {})


def example_tensor(inputs: Any) -> Tensor:
    """The tensor whose shape stands for the inputs: the image, if there is one, and else the first tensor.

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
    """Whether it is a batch of pixels: floating-point and (B, C, H, W)."""
    return isinstance(value, Tensor) and value.ndim == 4 and value.is_floating_point()


def sample_count(inputs: Any) -> int:
    """How many samples there are, B: the length of the first tensor, or of the first list."""
    if isinstance(inputs, Tensor):
        return len(inputs)
    positional, named = call_arguments(inputs)
    return next((len(value) for value in (*positional, *named.values()) if isinstance(value, Sized)), 1)


def as_batch(inputs: Any, targets: Any = None) -> Batch:
    """A ``Batch`` of inputs from no ``Data``: no sample has an index, or a label if there are no targets."""
    if isinstance(inputs, Batch):
        return inputs
    count, device = sample_count(inputs), example_tensor(inputs).device
    if targets is None:
        targets = torch.full((count,), UNLABELLED, device=device)
    return Batch(inputs, targets, torch.full((count,), NO_INDEX, device=device), None)
