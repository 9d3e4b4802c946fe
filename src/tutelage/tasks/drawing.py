"""Drawings of predictions."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Drawing:
    """A test sample with its label and the prediction drawn in.

    Attributes:
        pixels: (H, W, 3) uint8.
        caption: what it shows, with its score.
    """

    pixels: Tensor
    caption: str
