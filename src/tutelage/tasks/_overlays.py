"""Pictures of images beside their masks and predicted masks."""

from __future__ import annotations

import torch
from torch import Tensor

OPACITY = 0.6  # of a mask that is laid over its image
GAP = 2  # pixels between the images
SWATCH = 16  # pixels per side
BITS = 8


def palette(classes: int) -> Tensor:
    """The usual colours of class numbers, those of PASCAL VOC: (C, 3) uint8.

    The bits of a number are dealt out to red, green and blue in turn, from the highest bit of a colour down; 0 is
    black.
    """
    numbers = torch.arange(classes)
    colours = torch.zeros(classes, 3, dtype=torch.int64)
    for bit in range(BITS):
        for channel in range(3):
            colours[:, channel] |= ((numbers >> channel) & 1) << (BITS - 1 - bit)
        numbers = numbers >> 3
    return colours.to(torch.uint8)


def overlaid(pixels: Tensor, mask: Tensor, colours: Tensor) -> Tensor:
    """An image with its mask laid over it: (H, W, 3) uint8, (H, W) and (C, 3) uint8; void pixels, -1, stay."""
    mask = mask.long()
    mixed = (1 - OPACITY) * pixels.float() + OPACITY * colours[mask.clamp(min=0)].float()
    return mixed.round().to(torch.uint8).where((mask >= 0)[:, :, None], pixels)


def swatches(colours: Tensor) -> Tensor:
    """A square of each colour, in a row: (C, 3) uint8 to (SWATCH, C SWATCH, 3) uint8."""
    return colours.repeat_interleave(SWATCH, 0).expand(SWATCH, -1, -1).contiguous()


def side_by_side(pixels: Tensor, masks: list[Tensor], colours: Tensor) -> Tensor:
    """An image, and then the image under each mask: (H, W, channels) uint8 to (H, width, 3) uint8."""
    pixels = pixels[:, :, :3].expand(-1, -1, 3)
    gap = torch.full((pixels.shape[0], GAP, 3), 255, dtype=torch.uint8)
    parts = [pixels]
    for mask in masks:
        parts += [gap, overlaid(pixels, mask, colours)]
    return torch.cat(parts, 1)
