"""FastSal with the decoder of type C, which concatenates the levels (Hu, McGuinness 2020, arXiv 2008.11151)."""

from __future__ import annotations

import re
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.methods.fastsal.networks._encoder import ROLES, Encoder, cut
from tutelage.models.family import Family

CHANNELS = (128, 256, 512, 512)


class FastSalC(nn.Module):
    """FastSal-C: each level goes through a 1x1 convolution, all are enlarged to half the image, concatenated and read.

    Args:
        image_shape: (C, H, W) of the images, of any size; the paper's are 192 x 256.
        width: multiplies the channels of encoder and decoder.

    Attributes:
        roles: ``stage1`` .. ``stage5`` and ``embedding`` of the encoder, and its ``level1`` .. ``level4``.
    """

    roles: ClassVar[dict[str, str]] = ROLES

    def __init__(self, image_shape: tuple[int, int, int] = (3, 192, 256), width: float = 1) -> None:
        super().__init__()
        self.size = image_shape[1], image_shape[2]
        self.encoder = Encoder(image_shape, width)
        channels = [4 * max(1, round(base * width / 4)) for base in CHANNELS]
        self.adapters = nn.ModuleList(
            nn.Sequential(nn.Conv2d(level, outputs, 1), nn.ReLU())
            for level, outputs in zip(self.encoder.channels, channels, strict=True)
        )
        self.head = nn.Conv2d(sum(channels) // 4, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to logits (B, 1, H, W)."""
        finest = self.encoder.sizes[0]
        features = [adapter(level) for adapter, level in zip(self.adapters, self.encoder(x), strict=True)]
        enlarged = [F.interpolate(maps, size=finest, mode="bilinear", align_corners=False) for maps in features[1:]]
        merged = F.pixel_shuffle(torch.cat([features[0], *enlarged], 1), 2)
        logits: Tensor = self.head(cut(merged, self.size))
        return logits


FAMILY = Family(
    re.compile(r"fastsal-c(?:x(?P<width>[0-9]+(?:\.[0-9]+)?))?"),
    FastSalC,
    ("fastsal-c", "fastsal-cx0.25"),
    "saliency on MobileNetV2, the more accurate decoder: fastsal-c, or fastsal-cx<width> with all channels x width",
    "Hu, McGuinness 2020, arXiv 2008.11151",
)
