"""Changes of colour, a batch at a time: brightness, contrast, saturation, hue, and ``ColourJitter``.

Images are (B, H, W, C) float32 in [0, 255]; factors are (B, 1, 1, 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tutelage.data.views.draws import Draws, per_image
from tutelage.errors import TutelageError

LUMA = (0.299, 0.587, 0.114)
"""The weights of red, green and blue in a grey image (ITU-R BT.601)."""


def grey(images: Tensor) -> Tensor:
    """Luma of RGB images, else the mean of the channels: (B, H, W, 1)."""
    if images.shape[3] != 3:
        return images.mean(3, keepdim=True)
    red, green, blue = (images[..., channel : channel + 1] * weight for channel, weight in enumerate(LUMA))
    return red + green + blue


def blended(images: Tensor, other: Tensor | float, factor: Tensor) -> Tensor:
    """factor * images + (1 - factor) * other, cut off at 0 and 255; factor 1 changes nothing."""
    return (factor * images + (1 - factor) * other).clamp_(0, 255)


def brightened(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with black."""
    return blended(images, 0.0, factor)


def contrasted(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean luma of each image."""
    return blended(images, grey(images).mean((1, 2, 3), keepdim=True), factor)


def saturated(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the grey image; only RGB images change."""
    return images if images.shape[3] != 3 else blended(images, grey(images), factor)


def hue_turned(images: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue by a share of the colour circle, -0.5 to 0.5, at the same saturation and value.

    With V the largest channel, D the largest minus the smallest, and h the hue in [0, 6), the channels of a colour are
    V - D clamp(min(k, 4 - k), 0, 1), k = (n + h) mod 6, with n = 5, 3, 1 for red, green and blue.
    """
    if images.shape[3] != 3:
        return images
    value, largest = images.max(3, keepdim=True)
    spread = value - images.amin(3, keepdim=True)
    red, green, blue = (images[..., channel : channel + 1] for channel in range(3))
    ahead = torch.where(largest == 0, green - blue, torch.where(largest == 1, blue - red, red - green))
    hue = ahead / spread.clamp(min=1e-6) + 2 * largest + 6 * turn
    offsets = 5 - 2 * torch.arange(3, device=images.device)
    position = (offsets + hue) % 6
    return value - spread * torch.minimum(position, 4 - position).clamp_(0, 1)


@dataclass(frozen=True, slots=True)
class ColourJitter:
    """Random brightness, contrast, saturation and hue, in this order (torchvision's order is random).

    Brightness, contrast and saturation are factors, uniform in [max(0, 1 - x), 1 + x]; hue is a turn of the colour
    circle, uniform in [-x, x]. 0 leaves a property unchanged. Images of one channel have no saturation and no hue.

    Attributes:
        brightness, contrast, saturation: x of each, 0 or more.
        hue: from 0 to 0.5.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1

    moves: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= (value := getattr(self, name)) < float("inf"):
                raise TutelageError(f"the {name} of a colour jitter must be 0 or more, got {value}")
        if not 0 <= self.hue <= 0.5:
            raise TutelageError(f"the hue of a colour jitter must lie between 0 and 0.5, got {self.hue}")

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """(B, H, W, C) uint8 to (B, H, W, C) uint8."""
        changed = images.float()
        for operation, strength in (
            (brightened, self.brightness),
            (contrasted, self.contrast),
            (saturated, self.saturation),
        ):
            factor = draws.uniform(max(0.0, 1 - strength), 1 + strength)
            changed = operation(changed, per_image(factor)) if strength else changed
        turn = draws.uniform(-self.hue, self.hue)
        changed = hue_turned(changed, per_image(turn)) if self.hue else changed
        return changed.round_().to(torch.uint8)
