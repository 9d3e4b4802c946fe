"""Random erasing: a box of the image loses its content."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tutelage.data.views.boxes import check_probability, check_range, image_sizes, random_boxes
from tutelage.data.views.draws import Draws


@dataclass(frozen=True, slots=True)
class RandomErasing:
    """Replace a random box of some images by the mean colour of the image (Zhong et al. 2020, arXiv 1708.04896).

    Attributes:
        probability: how likely an image loses a box.
        scale: smallest and largest area of the box, as shares of the image's.
        ratio: smallest and largest width divided by height.
    """

    probability: float = 0.25
    scale: tuple[float, float] = (0.02, 1 / 3)
    ratio: tuple[float, float] = (0.3, 1 / 0.3)

    moves: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_probability("the probability of random erasing", self.probability)
        check_range("the scale of random erasing", self.scale, 1.0)
        check_range("the ratio of random erasing", self.ratio, math.inf)

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """(B, H, W, C) uint8 to (B, H, W, C) uint8."""
        height, width = images.shape[1:3]
        erased = draws.chance(self.probability)
        sizes = image_sizes(images)
        top, left, box_height, box_width = random_boxes(sizes, self.scale, self.ratio, draws).unbind(1)
        rows = _within(height, top, box_height) & erased[:, None]
        box = rows[:, :, None, None] & _within(width, left, box_width)[:, None, :, None]
        mean = images.float().mean((1, 2), keepdim=True).round_().to(torch.uint8)
        return torch.where(box, mean, images)


def _within(size: int, first: Tensor, extent: Tensor) -> Tensor:
    """Which of ``size`` positions lie in a range: (B,) to (B, size) bool."""
    positions = torch.arange(size, device=first.device)
    return (positions >= first[:, None]) & (positions < (first + extent)[:, None])
