"""RandAugment: some operations of a fixed set, drawn at random, at one magnitude."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.data.views.colour import brightened, contrasted, saturated
from tutelage.data.views.draws import Draws, per_image
from tutelage.errors import TutelageError

OPERATIONS = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "contrast",
    "saturation",
    "autocontrast",
    "posterize",
    "solarize",
)
LARGEST = 30.0
SHEAR, SHIFT, DEGREES, BLEND, BITS = 0.3, 0.45, 30.0, 0.9, 4


@dataclass(frozen=True, slots=True)
class RandAugment:
    """``layers`` operations, each drawn at random from twelve (Cubuk et al. 2020, arXiv 1909.13719).

    With m = magnitude / 30, and a random sign where the operation has two directions:

    - identity
    - shear_x, shear_y: by 0.3 m; translate_x, translate_y: by 0.45 m of the side; rotate: by 30 m degrees.
      Bilinear, around the centre, with black outside of the image
    - brightness, contrast, saturation: by the factor 1 ± 0.9 m
    - autocontrast: stretch each channel to 0 .. 255
    - posterize: keep 8 - 4 m bits, rounded
    - solarize: invert values of at least 255 (1 - m)

    Magnitudes are those of torchvision, which has sharpness and equalize, too. An image's shifts and rotations are one
    resampling, before its changes of colour; in the paper, operations apply in the order in which they are drawn.

    Attributes:
        layers: operations for each image.
        magnitude: from 0 to 30.
    """

    layers: int = 2
    magnitude: float = 9.0

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise TutelageError(f"the layers of RandAugment must be 1 or more, got {self.layers}")
        if not 0 <= self.magnitude <= LARGEST:
            raise TutelageError(
                f"the magnitude of RandAugment must lie between 0 and {LARGEST:g}, got {self.magnitude}"
            )

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """(B, H, W, C) uint8 to (B, H, W, C) uint8."""
        choices = [(draws.integers(len(OPERATIONS)), draws.sign()) for _ in range(self.layers)]
        return apply_operations(images, choices, self.magnitude / LARGEST)


def apply_operations(images: Tensor, choices: list[tuple[Tensor, Tensor]], strength: float) -> Tensor:
    """Apply operation ``choices[layer][0][b]``, with sign ``choices[layer][1][b]``, to image ``b``.

    Args:
        images: (B, H, W, C) uint8.
        choices: numbers in ``OPERATIONS``, (B,) int64, and signs, (B,) float32, for each layer.
        strength: the magnitude, 0 to 1.
    """
    matrix = torch.eye(2, 3, device=images.device).expand(len(images), 2, 3)
    for number, sign in choices:
        matrix = _composed(matrix, _matrix(number, sign * strength, images.shape[1:3]))
    changed = warped(images.float(), matrix).round_()  # else posterize would cut off rounding errors
    for number, sign in choices:
        changed = _recoloured(changed, number, sign * strength, strength)
    return changed.round_().clamp_(0, 255).to(torch.uint8)


def _matrix(number: Tensor, strength: Tensor, size: torch.Size) -> Tensor:
    """The map from output to source coordinates, in pixels from the centre: (B, 2, 3); the identity by default."""

    def amount(name: str, largest: float) -> Tensor:
        return torch.where(number == OPERATIONS.index(name), strength * largest, 0.0)

    angle = amount("rotate", math.radians(DEGREES))
    height, width = size
    rows = [
        [angle.cos(), amount("shear_x", SHEAR) - angle.sin(), amount("translate_x", SHIFT * width)],
        [amount("shear_y", SHEAR) + angle.sin(), angle.cos(), amount("translate_y", SHIFT * height)],
    ]
    return torch.stack([torch.stack(row, 1) for row in rows], 1)


def _composed(first: Tensor, second: Tensor) -> Tensor:
    """The map of applying ``second`` to the result of ``first``: (B, 2, 3) each."""
    linear = first[:, :, :2]
    return torch.cat([linear @ second[:, :, :2], linear @ second[:, :, 2:] + first[:, :, 2:]], 2)


def warped(images: Tensor, matrix: Tensor) -> Tensor:
    """Resample images bilinearly: output pixel p shows what lies at ``matrix`` (p, 1), with black outside.

    Coordinates are (x, y) in pixels from the centre. Images are (B, H, W, C) float32, matrices (B, 2, 3).
    """
    height, width = images.shape[1:3]
    y, x = (torch.arange(size, device=images.device) - (size - 1) / 2 for size in (height, width))
    across, down = (
        row[:, 0, None, None] * x + row[:, 1, None, None] * y[:, None] + row[:, 2, None, None]
        for row in matrix.unbind(1)
    )
    grid = torch.stack([across * (2 / width), down * (2 / height)], 3)
    return F.grid_sample(images.permute(0, 3, 1, 2), grid, align_corners=False).permute(0, 2, 3, 1)


def _recoloured(images: Tensor, number: Tensor, signed: Tensor, strength: float) -> Tensor:
    """The change of colour that each image's operation makes; none for others."""

    def chosen(name: str) -> Tensor:
        return per_image(number == OPERATIONS.index(name))

    for name, operation in (("brightness", brightened), ("contrast", contrasted), ("saturation", saturated)):
        images = operation(images, torch.where(chosen(name), 1 + BLEND * per_image(signed), 1.0))
    low, high = images.amin((1, 2), keepdim=True), images.amax((1, 2), keepdim=True)
    stretched = (images - low) * (255 / (high - low).clamp(min=1))
    images = torch.where(chosen("autocontrast") & (high > low), stretched, images)
    step = 2.0 ** round(BITS * strength)
    images = torch.where(chosen("posterize"), (images / step).floor() * step, images)
    return torch.where(chosen("solarize") & (images >= 255 * (1 - strength)), 255 - images, images)
