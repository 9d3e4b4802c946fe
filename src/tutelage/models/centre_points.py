"""Centre points: a map of detected objects, and its boxes (Zhou, Wang, Krähenbühl 2019, arXiv 1904.07850).

A detector returns one map (B, C + 4, h, w). The first C channels are logits: whether the centre of an object of the
class lies in the cell. The last four are the object's width and height, in cells, and the position of its centre in the
cell, from 0 to 1 to the right and down.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

GEOMETRY = 4
"""The channels after the heat maps: width, height, and the centre's place in the cell."""

TOP = 100
"""Detections of an image, as in COCO's evaluation."""


def decode(outputs: Tensor, size: tuple[int, int], top: int = TOP) -> Tensor:
    """The boxes of the most certain centre points.

    A cell is a centre if no neighbour (3x3) has a larger logit of the class, which replaces non-maximum suppression.
    Nothing here depends on values of the map, so the device is not waited for.

    Args:
        outputs: (B, C + 4, h, w), as above.
        size: (H, W) of the images.
        top: at most so many detections of an image.

    Returns:
        (B, K, 6) float32 of (x1, y1, x2, y2, score, class) by falling score, K = min(top, C h w): boxes in pixels, cut
        at the rim of the image; scores in [0, 1]. The class is -1 where the score is 0, which is no detection.
    """
    outputs = outputs.float()
    heat = outputs[:, :-GEOMETRY]
    height, width = heat.shape[-2:]
    peak = F.max_pool2d(heat, 3, stride=1, padding=1) == heat
    scores, index = heat.sigmoid().where(peak, 0.0).flatten(1).topk(min(top, heat[0].numel()))
    cell, label = index % (height * width), index.div(height * width, rounding_mode="floor")
    geometry = outputs[:, -GEOMETRY:].flatten(2).gather(2, cell[:, None].expand(-1, GEOMETRY, -1))
    columns, rows = (cell % width).float(), cell.div(width, rounding_mode="floor").float()
    sides, centre = geometry[:, :2].clamp(min=0), geometry[:, 2:] + torch.stack([columns, rows], 1)
    corners = []
    for sign in (-0.5, 0.5):
        x, y = (centre + sign * sides).unbind(1)
        corners += [(x * (size[1] / width)).clamp(0, size[1]), (y * (size[0] / height)).clamp(0, size[0])]
    return torch.stack([*corners, scores, label.float().where(scores > 0, -1.0)], 2)
