"""How well predicted boxes of one object agree with its true boxes, frame by frame."""

from __future__ import annotations

import torch
from torch import Tensor

THRESHOLDS = torch.arange(21, dtype=torch.float64) / 20
"""The overlaps at which success curves are evaluated, as in the Object Tracking Benchmark."""

PRECISION_PIXELS = 20.0
"""The largest centre error that precision accepts."""


def overlaps(boxes: Tensor, others: Tensor) -> Tensor:
    """The area of the intersection of two boxes divided by that of their union: (..., 4) each to (...,).

    Boxes are (x, y, w, h). It is NaN if a box has NaN, and 0 if both boxes have no area.
    """
    low = torch.maximum(boxes[..., :2], others[..., :2])
    high = torch.minimum(boxes[..., :2] + boxes[..., 2:], others[..., :2] + others[..., 2:])
    common = (high - low).clamp(min=0).prod(-1)
    union = boxes[..., 2:].prod(-1) + others[..., 2:].prod(-1) - common
    shares: Tensor = common / torch.where(union == 0, 1.0, union)
    return shares


def centre_errors(boxes: Tensor, others: Tensor) -> Tensor:
    """The distance between the centres of two boxes, in pixels: (..., 4) each to (...,)."""
    difference = boxes[..., :2] + boxes[..., 2:] / 2 - others[..., :2] - others[..., 2:] / 2
    distances: Tensor = torch.linalg.vector_norm(difference, dim=-1)
    return distances


def success_curve(overlap: Tensor) -> Tensor:
    """The share of frames whose overlap is above each of ``THRESHOLDS``: (N,) to (21,)."""
    return (overlap.double()[:, None] > THRESHOLDS.to(overlap.device)).double().mean(0)


def one_pass(boxes: Tensor, truth: Tensor, videos: Tensor) -> dict[str, Tensor]:
    """The measures of a one-pass evaluation, each one the mean over videos of the mean over the video's frames.

    Args:
        boxes: (N, 4) predicted boxes (x, y, w, h), of the frames that count.
        truth: (N, 4), the true ones.
        videos: (N,) int64, the number of each frame's video.

    Returns:
        ``overlap`` (), ``success_rate`` () above an overlap of 0.5, ``success`` (21,) the success curve,
        ``success_auc`` () its mean, ``precision`` () the share of centre errors of at most 20 pixels,
        ``centre_error`` () in pixels, ``videos`` (V,) the sorted numbers of the videos and ``overlap_of_videos`` (V,).
        All float64 but ``videos``; NaN if there is no frame.
    """
    if not len(boxes):
        nothing, missing = torch.empty(0, dtype=torch.float64), torch.tensor(torch.nan, dtype=torch.float64)
        names = ("overlap", "success_rate", "success_auc", "precision", "centre_error")
        curve = {"success": torch.full_like(THRESHOLDS, torch.nan), "overlap_of_videos": nothing}
        return {**dict.fromkeys(names, missing), **curve, "videos": nothing.long()}
    overlap, error = overlaps(boxes.double(), truth.double()), centre_errors(boxes.double(), truth.double())
    numbers = torch.unique(videos)
    by_video = [(overlap[videos == number], error[videos == number]) for number in numbers]
    mean_overlaps = torch.stack([values.mean() for values, _ in by_video])
    success = torch.stack([success_curve(values) for values, _ in by_video]).mean(0)
    return {
        "overlap": mean_overlaps.mean(),
        "success_rate": torch.stack([(values > 0.5).double().mean() for values, _ in by_video]).mean(),
        "success": success,
        "success_auc": success.mean(),
        "precision": torch.stack([(values <= PRECISION_PIXELS).double().mean() for _, values in by_video]).mean(),
        "centre_error": torch.stack([values.mean() for _, values in by_video]).mean(),
        "videos": numbers,
        "overlap_of_videos": mean_overlaps,
    }
