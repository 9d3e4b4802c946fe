"""Average precision and average recall over a data set (COCO's evaluation of boxes)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from tutelage.data.targets.boxes import OBJECT
from tutelage.evaluation.detection.matching import EVERY_AREA, THRESHOLDS, areas, match

RECALLS = torch.from_numpy(np.linspace(0.0, 1.0, 101))
"""The recalls at which precision is read."""

AREA_RANGES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, EVERY_AREA[1])}
)
"""COCO's ranges of the area of a box, in pixels."""

MOST_DETECTIONS = 100  # of one class in one image
CHUNK = 2**24  # elements of a matrix of IoUs


@dataclass(frozen=True)
class AveragePrecision:
    """Average precisions and recalls by class and threshold; NaN for a class without a box that counts.

    Attributes:
        precision: (C, T): the mean, over 101 recalls, of the largest precision at this recall or a higher one.
        recall: (C, T): the share of the boxes that were found by the detections of each image and class that count.
        thresholds: (T,) IoU.
    """

    precision: Tensor
    recall: Tensor
    thresholds: Tensor

    @property
    def mean(self) -> float:
        """The mean over classes and thresholds (AP); NaN if no box counts."""
        return float(self.precision.nanmean())

    @property
    def mean_recall(self) -> float:
        """The mean recall over classes and thresholds (AR)."""
        return float(self.recall.nanmean())

    @property
    def by_class(self) -> Tensor:
        """The mean over thresholds of each class, (C,)."""
        return self.precision.mean(1)

    def at(self, threshold: float) -> float:
        """The mean over classes at one of the thresholds."""
        return float(self.precision[:, int((self.thresholds - threshold).abs().argmin())].nanmean())


def average_precision(
    detections: Tensor,
    boxes: Tensor,
    num_classes: int,
    *,
    thresholds: Tensor = THRESHOLDS,
    area_range: tuple[float, float] = EVERY_AREA,
    most: int = MOST_DETECTIONS,
) -> AveragePrecision:
    """COCO's average precision of the detections in all images.

    Args:
        detections: (N, K, 6) of (x1, y1, x2, y2, score, class), in any order; class -1 for none.
        boxes: (N, M, 6) of (x1, y1, x2, y2, class, kind), as ``data.targets.Boxes`` stores them.
        num_classes: C.
        thresholds: (T,) of the IoU.
        area_range: the areas that count. COCO takes the areas of segmentations from its file; here they are those of
            the boxes.
        most: the detections of one class in one image that count, those with the highest scores.
    """
    detections = _sorted(detections, most)
    size = max(1, CHUNK // max(1, detections.shape[1] * boxes.shape[1] * len(thresholds)))
    parts = [
        match(d, b, thresholds=thresholds, area_range=area_range)
        for d, b in zip(torch.split(detections, size), torch.split(boxes, size), strict=True)
    ]
    true, ignored = (torch.cat(values).movedim(1, 0).flatten(1).cpu() for values in zip(*parts, strict=True))
    flat, boxes = detections.flatten(0, 1).cpu(), boxes.cpu()
    low, high = area_range
    counted = (boxes[..., 5] == OBJECT) & (areas(boxes) >= low) & (areas(boxes) <= high)
    precisions, recalls = [], []
    for number in range(num_classes):
        positives = int((counted & (boxes[..., 4] == number)).sum())
        own = (flat[:, 5] == number).nonzero().squeeze(1)
        own = own[flat[own, 4].argsort(descending=True, stable=True)]
        precision, recall = _curve(true[:, own], ignored[:, own], positives)
        precisions.append(precision)
        recalls.append(recall)
    none = torch.zeros(0, len(thresholds), dtype=torch.float64)
    return AveragePrecision(
        torch.stack([*precisions]) if precisions else none, torch.stack(recalls) if recalls else none, thresholds
    )


def _sorted(detections: Tensor, most: int) -> Tensor:
    """Each image's detections by falling score, equals in their order; of each class the first ``most``."""
    order = detections[..., 4].argsort(dim=1, descending=True, stable=True)
    detections = detections.gather(1, order[..., None].expand_as(detections))
    if detections.shape[1] <= most:
        return detections
    classes = detections[..., 5]
    surplus = torch.zeros_like(classes, dtype=torch.bool)
    for number in range(int(classes.max()) + 1):
        own = classes == number
        surplus |= own & (own.cumsum(1) > most)
    classes = classes.masked_fill(surplus, -1)
    depth = int((classes >= 0).sum(1).max())  # matching takes a step for each of them
    first = (classes < 0).byte().argsort(dim=1, stable=True)[:, :depth, None]
    return torch.cat([detections[..., :5], classes[..., None]], 2).gather(1, first.expand(-1, -1, detections.shape[2]))


def _curve(true: Tensor, ignored: Tensor, positives: int) -> tuple[Tensor, Tensor]:
    """Average precision and recall of one class at each threshold, (T,), from its sorted detections (T, D)."""
    thresholds = len(true)
    if positives == 0:
        nothing = torch.full((thresholds,), torch.nan, dtype=torch.float64)
        return nothing, nothing
    right = true.double().cumsum(1)
    wrong = (~true & ~ignored).double().cumsum(1)
    recall = right / positives
    precision = right / (right + wrong + np.spacing(1))
    precision = precision.flip(1).cummax(1).values.flip(1) if precision.shape[1] else precision
    index = torch.searchsorted(recall.contiguous(), RECALLS.expand(thresholds, -1).contiguous())
    padded = torch.cat([precision, torch.zeros(thresholds, 1, dtype=torch.float64)], 1)
    last = recall[:, -1] if recall.shape[1] else torch.zeros(thresholds, dtype=torch.float64)
    return padded.gather(1, index).mean(1), last
