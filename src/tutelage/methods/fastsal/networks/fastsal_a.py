"""FastSal with the decoder of type A, which adds the levels (Hu, McGuinness 2020, arXiv 2008.11151)."""

from __future__ import annotations

import re
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle

from tutelage.methods.fastsal.networks._encoder import ROLES, Encoder, cut
from tutelage.models.family import Family
from tutelage.models.networks.mobilenetv2 import InvertedResidual

FINEST = 8  # channels of the finest level; each coarser one has four times as many


class Refinement(nn.Module):
    """An inverted residual of expansion 2, which has a shortcut of its own, and one more shortcut around it.

    Its output has twice the height and width and a quarter of the channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.residual = InvertedResidual(channels, channels, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C / 4, 2 H, 2 W)."""
        return pixel_shuffle(self.residual(x) + x, 2)


class FastSalA(nn.Module):
    """FastSal-A, the faster one: from the coarsest level up, each is refined, enlarged and added to the next finer one.

    Args:
        image_shape: (C, H, W) of the images, of any size; the paper's are 192 x 256.
        width: multiplies the channels of the encoder, and those of the decoder in steps of a half.

    Attributes:
        roles: as those of ``FastSalC``.
    """

    roles: ClassVar[dict[str, str]] = ROLES

    def __init__(self, image_shape: tuple[int, int, int] = (3, 192, 256), width: float = 1) -> None:
        super().__init__()
        self.size = image_shape[1], image_shape[2]
        self.encoder = Encoder(image_shape, width)
        finest = 4 * max(1, round(FINEST * width / 4))
        channels = [finest * 4**number for number in range(4)]
        self.adapters = nn.ModuleList(
            nn.Sequential(nn.Conv2d(level, outputs, 1), nn.ReLU())
            for level, outputs in zip(self.encoder.channels, channels, strict=True)
        )
        self.refinements = nn.ModuleList(Refinement(outputs) for outputs in channels)
        self.head = nn.Conv2d(finest // 4, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to logits (B, 1, H, W)."""
        *finer, out = [adapter(level) for adapter, level in zip(self.adapters, self.encoder(x), strict=True)]
        first, *rest = self.refinements
        for refinement, maps in zip(reversed(rest), reversed(finer), strict=True):
            out = maps + cut(refinement(out), (maps.shape[2], maps.shape[3]))
        logits: Tensor = self.head(cut(first(out), self.size))
        return logits


FAMILY = Family(
    re.compile(r"fastsal-a(?:x(?P<width>[0-9]+(?:\.[0-9]+)?))?"),
    FastSalA,
    ("fastsal-a", "fastsal-ax0.25"),
    "saliency on MobileNetV2, the faster decoder: fastsal-a, or fastsal-ax<width> with all channels x width",
    "Hu, McGuinness 2020, arXiv 2008.11151",
)
