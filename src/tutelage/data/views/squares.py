"""Square crops around the box of an object, with the mean colour of the frame outside of the frame."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def context_side(sizes: Tensor) -> Tensor:
    """The side of the square with context around a box of w x h pixels: sqrt((w + p) (h + p)), p = (w + h) / 2.

    Sizes (..., 2) are (w, h); the sides are (...,), in pixels (Bertinetto et al. 2016, arXiv 1606.09549).
    """
    return (sizes + sizes.mean(-1, keepdim=True)).prod(-1).sqrt()


def square_crops(frames: Tensor, centres: Tensor, sides: Tensor, pixels: int) -> Tensor:
    """Cut K squares out of each frame and scale them, bilinearly.

    Coordinates are continuous: pixel (i, j) covers x from j to j + 1 and y from i to i + 1.

    Args:
        frames: (B, C, H, W) floats.
        centres: (B, K, 2), x and y.
        sides: (B, K), in pixels of the frame.
        pixels: P, the side of what is returned.

    Returns:
        (B, K, C, P, P). What lies outside of the frame has the frame's mean colour.
    """
    (count, channels, height, width), squares = frames.shape, sides.shape[1]
    steps = (torch.arange(pixels, device=frames.device) + 0.5) / pixels - 0.5
    x, y = (centres[..., axis, None] + steps * sides[..., None] for axis in range(2))  # (B, K, P) each
    shape = (count, squares, pixels, pixels)
    grid = torch.stack(
        [(2 * x / width - 1)[:, :, None, :].expand(shape), (2 * y / height - 1)[:, :, :, None].expand(shape)], 4
    )
    mean = frames.mean((2, 3), keepdim=True)
    crops = F.grid_sample(frames - mean, grid.flatten(1, 2), padding_mode="zeros", align_corners=False) + mean
    return crops.view(count, channels, squares, pixels, pixels).transpose(1, 2)
