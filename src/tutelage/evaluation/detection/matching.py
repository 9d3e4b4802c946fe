"""Which detections are right: the greedy assignment of detections to true boxes of COCO's evaluation."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tutelage.data.targets.boxes import CROWD, OBJECT

THRESHOLDS = torch.from_numpy(np.linspace(0.5, 0.95, 10))
"""The ten IoU thresholds of COCO's AP."""

EVERY_AREA = (0.0, 1e10)


class Matches(NamedTuple):
    """What became of each detection at each IoU threshold, (N, T, K) bool.

    Attributes:
        true: it found a box that no better detection has found.
        ignored: it counts neither as right nor as wrong: it found an ignored box, or found none and is outside of the
            range of areas.
    """

    true: Tensor
    ignored: Tensor


def box_iou(first: Tensor, second: Tensor, crowd: Tensor | None = None) -> Tensor:
    """Intersection over union of boxes (x1, y1, x2, y2): (..., K, 4) and (..., M, 4) to (..., K, M).

    Args:
        first: detections.
        second: true boxes.
        crowd: (..., M) bool: which true boxes are crowds, whose IoU is the intersection over the detection's area.
    """
    top_left = torch.maximum(first[..., :, None, :2], second[..., None, :, :2])
    bottom_right = torch.minimum(first[..., :, None, 2:4], second[..., None, :, 2:4])
    intersection = (bottom_right - top_left).clamp(min=0).prod(-1)
    own, other = areas(first)[..., :, None], areas(second)[..., None, :]
    union = own + other - intersection
    if crowd is not None:
        union = torch.where(crowd[..., None, :], own, union)
    return intersection / union.where(union > 0, 1.0)


def areas(boxes: Tensor) -> Tensor:
    """The areas of boxes (x1, y1, x2, y2, ...): (..., M, 4 or more) to (..., M)."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def match(
    detections: Tensor,
    boxes: Tensor,
    *,
    thresholds: Tensor = THRESHOLDS,
    area_range: tuple[float, float] = EVERY_AREA,
) -> Matches:
    """Assign detections to true boxes, from the most certain one on.

    At each threshold, a detection takes the box of its class with the largest IoU, of at least the threshold, among
    those not occupied; the last one of equals. Boxes that count come before ignored ones, whatever the IoU. Ignored are
    difficult boxes, crowds and boxes outside of the range of areas; a crowd can be occupied any number of times.

    Classes do not interact, so all classes of an image are assigned in one pass over its detections, and all images and
    thresholds at once.

    Args:
        detections: (N, K, 6) of (x1, y1, x2, y2, score, class), each image's sorted by falling score; class -1 for
            none.
        boxes: (N, M, 6) of (x1, y1, x2, y2, class, kind), as ``data.targets.Boxes`` stores them.
        thresholds: (T,) of the IoU.
        area_range: the smallest and the largest area that counts, both included.
    """
    detections, boxes, thresholds = detections.double(), boxes.double(), thresholds.to(boxes.device)
    crowd = boxes[..., 5] == CROWD
    low, high = area_range
    ignored_box = (boxes[..., 5] != OBJECT) | (areas(boxes) < low) | (areas(boxes) > high)
    same_class = (detections[:, :, None, 5] == boxes[:, None, :, 4]) & (detections[:, :, None, 5] >= 0)
    iou = box_iou(detections, boxes, crowd).where(same_class, -1.0)
    count, depth, most = iou.shape
    occupied = torch.zeros(count, len(thresholds), most, dtype=torch.bool, device=boxes.device)
    true = torch.zeros(count, len(thresholds), depth, dtype=torch.bool, device=boxes.device)
    ignored = torch.zeros_like(true)
    positions = torch.arange(most, device=boxes.device)
    for rank in range(depth if most else 0):
        overlap = iou[:, rank, None]
        candidate = (overlap >= thresholds[:, None].clamp(max=1 - 1e-10)) & (~occupied | crowd[:, None])
        counted = candidate & ~ignored_box[:, None]
        candidate = torch.where(counted.any(-1, keepdim=True), counted, candidate)
        best = most - 1 - overlap.where(candidate, -2.0).flip(-1).argmax(-1)
        matched = candidate.any(-1)
        occupied |= matched[..., None] & (positions == best[..., None])
        into_ignored = ignored_box.gather(1, best)
        true[:, :, rank] = matched & ~into_ignored
        ignored[:, :, rank] = matched & into_ignored
    outside = (areas(detections) < low) | (areas(detections) > high)
    return Matches(true, ignored | (~true & outside[:, None]))
