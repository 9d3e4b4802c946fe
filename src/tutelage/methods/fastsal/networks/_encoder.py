"""The encoder of FastSal: MobileNetV2 with the outputs of all its blocks merged into four levels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle

from tutelage.models.networks.mobilenetv2 import SMALL, STAGES, InvertedResidual, MobileNetV2

LEVELS = ((1, 3), (3, 6), (6, 13), (13, 18))
"""The blocks (first, end) of each level, counted from 0 behind the stem; block 17 is the last 1x1 convolution."""


class Level(nn.Module):
    """Concatenates maps and halves their channels twice in favour of twice the height and width.

    Args:
        size: (H, W) to which the result is cut at the bottom and on the right. Convolutions of stride 2 round sizes up,
            so that this removes at most one row and one column.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, maps: Sequence[Tensor], finer: Sequence[Tensor] = ()) -> Tensor:
        """Maps (B, C_i, h, w) to (B, sum C_i / 4, H, W), behind the maps ``finer`` of that size."""
        merged = cut(pixel_shuffle(torch.cat(list(maps), 1), 2), self.size)
        return torch.cat([*finer, merged], 1)


class Encoder(nn.Module):
    """MobileNetV2 without its classifier, whose 18 blocks are merged into four levels of features.

    The stem and four stages have stride 2 for images of any size.

    Args:
        image_shape: (C, H, W) of the images.
        width: multiplies all channels, as in ``MobileNetV2``.

    Attributes:
        sizes: (H, W) of the levels, from fine to coarse: a half, a quarter, an eighth and a sixteenth of the image.
        channels: their numbers of channels, 28, 24, 136 and 520 at width 1.
    """

    def __init__(self, image_shape: tuple[int, int, int], width: float) -> None:
        super().__init__()
        # The size decides only about strides: with this one they are those of large images.
        backbone = MobileNetV2(1, (image_shape[0], SMALL, SMALL), width)
        self.stem, self.stages, self.last = backbone.stem, backbone.stages, backbone.last
        size = image_shape[1], image_shape[2]
        self.sizes = tuple(size := halved(size) for _ in LEVELS)
        self.levels = nn.ModuleList(Level(size) for size in self.sizes)
        blocks = [module for module in backbone.stages.modules() if isinstance(module, InvertedResidual)]
        outputs = [_last_channels(block) for block in (*blocks, backbone.last)]
        merged = [sum(outputs[first:end]) // 4 for first, end in LEVELS]
        self.channels = (outputs[0] + merged[0], *merged[1:])

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (B, C, H, W) to the levels, from fine to coarse."""
        x = self.stem(x)
        maps: list[Tensor] = []
        for stage in self.stages:
            for block in stage:  # type: ignore[attr-defined]
                x = block(x)
                maps.append(x)
        maps.append(self.last(x))
        first, *rest = self.levels
        (start, end), *others = LEVELS
        return [
            first(maps[start:end], maps[:start]),
            *(level(maps[start:end]) for level, (start, end) in zip(rest, others, strict=True)),
        ]


def _last_channels(block: nn.Module) -> int:
    *_, convolution = (layer for layer in block.modules() if isinstance(layer, nn.Conv2d))
    return convolution.out_channels


ROLES = {
    **{f"stage{n}": f"encoder.stages.{stage}.{STAGES[stage][2] - 1}" for n, stage in enumerate((0, 1, 2, 4, 6), 1)},
    **{f"level{number}": f"encoder.levels.{number - 1}" for number in range(1, 5)},
    "embedding": "encoder.last",
}
"""The last narrow map of each resolution, the levels, and the last map, averaged."""


def halved(size: tuple[int, int]) -> tuple[int, int]:
    """Half a size (H, W), rounded up."""
    return -(-size[0] // 2), -(-size[1] // 2)


def cut(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """The upper left part of this size (H, W) of maps (B, C, h, w)."""
    return maps[:, :, : size[0], : size[1]]
