"""Boxes of images: random resized crops and centre crops, and how a box becomes an image of another size.

A box is (top, left, height, width, mirrored) in pixels, int64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.data.views.draws import Draws
from tutelage.errors import TutelageError

ATTEMPTS = 10
CENTRE = 224 / 256
"""The share of the shorter side that the evaluation cuts out of a photograph, as is usual for ImageNet."""


@dataclass(frozen=True, slots=True)
class RandomResizedCrop:
    """A random box of random area and aspect ratio, scaled to the size of the output, and maybe mirrored.

    The distribution is that of torchvision's ``RandomResizedCrop``: the area is uniform in ``scale`` (shares of the
    image's), the logarithm of the ratio of width to height uniform in ``ratio``, and the position uniform. A box that
    does not fit is drawn again; after ten, the largest centre box of an admissible ratio is used.

    Attributes:
        scale: smallest and largest area, as shares of the image's.
        ratio: smallest and largest width divided by height.
        flip: the probability of a mirror image.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5

    def __post_init__(self) -> None:
        check_range("the scale of a random resized crop", self.scale, 1.0)
        check_range("the ratio of a random resized crop", self.ratio, math.inf)
        check_probability("the flip of a random resized crop", self.flip)

    def boxes(self, sizes: Tensor, draws: Draws) -> Tensor:
        """Boxes in images of sizes (H, W): (B, 2) int64 to (B, 5) int64."""
        boxes = random_boxes(sizes, self.scale, self.ratio, draws)
        return torch.cat([boxes, draws.chance(self.flip).long()[:, None]], 1)


def random_boxes(sizes: Tensor, scale: tuple[float, float], ratio: tuple[float, float], draws: Draws) -> Tensor:
    """Boxes (top, left, height, width) of random area and ratio: (B, 2) sizes (H, W) to (B, 4) int64."""
    height, width = sizes[:, 0], sizes[:, 1]
    log_ratio = math.log(ratio[0]), math.log(ratio[1])
    box_height, box_width = _largest_centre(height, width, ratio)
    fits = torch.zeros_like(height, dtype=torch.bool)
    for _ in range(ATTEMPTS):
        area = height * width * draws.uniform(*scale)
        aspect = draws.uniform(*log_ratio).exp()
        down, across = (area / aspect).sqrt().round().long(), (area * aspect).sqrt().round().long()
        new = ~fits & (down > 0) & (down <= height) & (across > 0) & (across <= width)
        box_height, box_width = torch.where(new, down, box_height), torch.where(new, across, box_width)
        fits = fits | new
    top, left = (
        torch.where(fits, (draws.uniform() * (room + 1)).long().clamp_(max=room), room // 2)
        for room in (height - box_height, width - box_width)
    )
    return torch.stack([top, left, box_height, box_width], 1)


def _largest_centre(height: Tensor, width: Tensor, ratio: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Height and width of the largest boxes whose ratio lies in the range."""
    return torch.minimum(height, (width / ratio[0]).round().long()), torch.minimum(
        width, (height * ratio[1]).round().long()
    )


def centre_boxes(sizes: Tensor, share: float = CENTRE) -> Tensor:
    """The middle square whose side is a share of the shorter side: (B, 2) sizes (H, W) to (B, 5) int64."""
    side = (sizes.amin(1) * share).round().long().clamp_(min=1)
    top, left = (sizes - side[:, None]).div(2, rounding_mode="floor").unbind(1)
    return torch.stack([top, left, side, side, torch.zeros_like(side)], 1)


def image_sizes(stored: Tensor) -> Tensor:
    """The size (H, W) of each image of a batch (B, H, W, C): (B, 2) int64."""
    size = torch.arange(2, device=stored.device)  # a tensor of two numbers would be copied from the host
    height, width = stored.shape[1:3]
    return (height + (width - height) * size).expand(len(stored), 2)


def cut(image: Tensor, box: list[int], size: tuple[int, int]) -> Tensor:
    """Cut a box out of one image and scale it, bilinearly and antialiased: (H, W, C) uint8 to (*size, C) uint8."""
    top, left, height, width, mirrored = box
    part = image[top : top + height, left : left + width]
    if (height, width) != size:
        planes = F.interpolate(part[None].permute(0, 3, 1, 2), size, mode="bilinear", antialias=True)
        part = planes[0].permute(1, 2, 0)
    return part.flip(1) if mirrored else part


def cut_batch(stored: Tensor, boxes: Tensor) -> Tensor:
    """Cut a box out of each image and enlarge it to the image's size, bilinearly: (B, H, W, C) uint8, unchanged shape.

    One gather serves the whole batch. Boxes are no larger than images, so that no antialiasing is needed.
    """
    height, width = stored.shape[1:3]
    top, left, box_height, box_width, mirrored = (column.float()[:, None] for column in boxes.unbind(1))
    y = _sources(height, box_height) + top
    x = _sources(width, box_width)
    x = torch.where(mirrored == 1, box_width - 1 - x, x) + left
    grid = torch.stack(
        [
            ((2 * x + 1) / width - 1)[:, None, :].expand(-1, height, -1),
            ((2 * y + 1) / height - 1)[:, :, None].expand(-1, -1, width),
        ],
        3,
    )
    planes = F.grid_sample(stored.permute(0, 3, 1, 2).float(), grid, padding_mode="border", align_corners=False)
    return planes.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _sources(size: int, extent: Tensor) -> Tensor:
    """The coordinate in a box of each of ``size`` pixels, not outside of its outermost pixels: (B, 1) to (B, size)."""
    centres = (torch.arange(size, device=extent.device) + 0.5) * (extent / size) - 0.5
    return torch.minimum(centres.clamp(min=0), extent - 1)


def check_range(what: str, values: tuple[float, float], most: float) -> None:
    """Refuse anything but two positive, increasing numbers up to ``most``."""
    if len(values) != 2 or not 0 < values[0] <= values[1] <= most:
        bound = f" up to {most:g}" if most < math.inf else ""
        raise TutelageError(f"{what} must be two positive, increasing numbers{bound}, got {tuple(values)}")


def check_probability(what: str, value: float) -> None:
    """Refuse anything but a probability."""
    if not 0 <= value <= 1:
        raise TutelageError(f"{what} must be a probability, from 0 to 1, got {value}")
