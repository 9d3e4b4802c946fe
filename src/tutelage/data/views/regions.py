"""The part of an image that a view shows, and how labels that are places in the image move with it.

A part is (top, left, height, width, mirrored) in pixels of the stored image, int64; a view shows it scaled to the size
of the stored image. Coordinates are those of edges: the centre of the first pixel is at (0.5, 0.5).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def whole_images(size: tuple[int, int], view: Tensor) -> Tensor:
    """The whole image, not mirrored, for each view of (B,): (B, 5) int64."""
    height, width = (torch.full_like(view, extent) for extent in size)
    start = torch.zeros_like(view)
    return torch.stack([start, start, height, width, start], 1)


def moved_points(points: Tensor, region: Tensor, size: tuple[int, int]) -> Tensor:
    """Points (x, y) of stored images, in the coordinates of their views: (B, M, 2) float32, unchanged shape.

    Args:
        points: in pixels of the stored images.
        region: (B, 5), the part of each image that its view shows.
        size: height and width of the stored images, and of the views.
    """
    top, left, height, width, mirrored = (column.to(points.dtype)[:, None] for column in region.unbind(1))
    x = (points[..., 0] - left) * (size[1] / width)
    y = (points[..., 1] - top) * (size[0] / height)
    return torch.stack([torch.where(mirrored == 1, size[1] - x, x), y], -1)


def moved_boxes(boxes: Tensor, region: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes (x1, y1, x2, y2) of stored images, in the coordinates of their views: (B, M, 4) float32, unchanged shape.

    They are not cut at the rim of the view.
    """
    first, second = (moved_points(boxes[..., corner : corner + 2], region, size) for corner in (0, 2))
    return torch.cat([torch.minimum(first, second), torch.maximum(first, second)], 2)


def cut_planes(planes: Tensor, region: Tensor, size: tuple[int, int], *, nearest: bool, fill: float) -> Tensor:
    """Maps or masks of stored images as their views show them: (B, C, h, w) float32, unchanged shape.

    Args:
        planes: of any resolution; they cover the stored images.
        region: (B, 5), the part of each image that its view shows.
        size: height and width of the stored images.
        nearest: take the nearest value, as class numbers require, instead of interpolating.
        fill: the value outside of the image.
    """
    rows, columns = planes.shape[2:]
    top, left, height, width, mirrored = (column.to(planes.dtype)[:, None] for column in region.unbind(1))
    down, across = _centres(rows, planes), _centres(columns, planes)
    across = torch.where(mirrored == 1, 1 - across, across)
    y = 2 * (top + height * down) / size[0] - 1
    x = 2 * (left + width * across) / size[1] - 1
    grid = torch.stack([x[:, None, :].expand(-1, rows, -1), y[:, :, None].expand(-1, -1, columns)], 3)
    mode = "nearest" if nearest else "bilinear"
    cut = F.grid_sample(planes, grid, mode=mode, padding_mode="border", align_corners=False)
    outside = (grid.abs() > 1).any(3)
    return cut.masked_fill(outside[:, None], fill)


def _centres(count: int, like: Tensor) -> Tensor:
    """The centres of ``count`` equal parts of [0, 1]: (1, count)."""
    return ((torch.arange(count, dtype=like.dtype, device=like.device) + 0.5) / count)[None]
