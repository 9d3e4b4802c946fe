"""Hiding one half of each image (Georgescu, Ionescu 2020, arXiv 2008.01003)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from tutelage.errors import TutelageError
from tutelage.text import value_text

Half = Literal["upper", "lower"]


def occlude(images: Tensor, hidden: Half = "upper", fill: float | Tensor = 0.0) -> Tensor:
    """Replace the upper or the lower half of the rows; the other rows do not change.

    The upper half is the first H // 2 rows, the lower half the remaining rows.

    Args:
        images: (B, C, H, W).
        hidden: which half.
        fill: the value of the hidden half, a number or (C, 1, 1); 0 is black in images that are not normalised.

    Returns:
        (B, C, H, W).
    """
    rows = torch.arange(images.shape[2], device=images.device)[:, None]
    upper = rows < images.shape[2] // 2
    return torch.where(upper if hidden == "upper" else ~upper, fill, images)


class Occlude(nn.Module):
    """``occlude`` as a layer, without parameters."""

    fill: Tensor

    def __init__(self, hidden: Half, fill: Sequence[float]) -> None:
        super().__init__()
        self.hidden: Half = hidden
        self.register_buffer("fill", torch.tensor(list(fill))[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return occlude(images, self.hidden, self.fill)


def normalised_black(mean: Tensor, std: Tensor, channels: int) -> list[float]:
    """The value of black after normalisation, (0 - mean) / std, one number per channel."""
    values: list[float] = (-mean / std).flatten().tolist()
    return values * channels if len(values) == 1 else values


def build(example: Tensor, *, hidden: Half, fill: Sequence[float]) -> Occlude:
    """The layer.

    Args:
        example: (B, C, H, W).
        hidden: "upper" or "lower".
        fill: the value of the hidden half, C numbers; see ``normalised_black``.

    Raises:
        TutelageError: the inputs are not images of at least two rows, there is no such half, or ``fill`` is not C
            finite numbers.
    """
    if example.ndim != 4 or example.shape[2] < 2:
        raise TutelageError(
            f"only half of an image can be hidden, and the inputs have shape {tuple(example.shape[1:])}; "
            "give images (C, H, W) of at least two rows"
        )
    if hidden not in get_args(Half):
        raise TutelageError(f"the hidden half must be {' or '.join(get_args(Half))}, got {value_text(hidden)}")
    channels = example.shape[1]
    are_numbers = isinstance(fill, list | tuple) and all(isinstance(value, int | float) for value in fill)
    if not are_numbers or len(fill) != channels or not all(map(math.isfinite, fill)):
        raise TutelageError(
            f"the fill of the hidden half must be {channels} finite numbers, one per channel, got {value_text(fill)}"
        )
    return Occlude(hidden, fill).to(example.device)
