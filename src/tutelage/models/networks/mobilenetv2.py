"""MobileNetV2, a small network for photographs (Sandler et al. 2018, arXiv 1801.04381, table 2)."""

from __future__ import annotations

import re

from torch import Tensor, nn

from tutelage.errors import TutelageError
from tutelage.models.family import Family
from tutelage.models.networks.resnet import he_initialise

# Expansion, channels, blocks, stride of the first block.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
SMALL = 64  # images with a shorter side are downsampled 8 times instead of 32 [ours]


class InvertedResidual(nn.Module):
    """A 1x1 expansion, a 3x3 depthwise convolution and a linear 1x1 projection; a shortcut where shapes allow it."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = in_channels * expansion
        expand = [_conv(in_channels, inner, 1)] if expansion != 1 else []
        self.conv = nn.Sequential(
            *expand,
            _conv(inner, inner, 3, stride, groups=inner),
            nn.Conv2d(inner, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.shortcut = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, channels, ceil(H / stride), ceil(W / stride))."""
        out: Tensor = self.conv(x)
        return x + out if self.shortcut else out


class MobileNetV2(nn.Module):
    """MobileNetV2: a stem, seven stages of inverted residuals, a 1x1 convolution, a mean and a linear classifier.

    Images are downsampled 32 times, as published. If a side is shorter than 64 pixels they are downsampled 8 times: the
    stem and the second stage have stride 1, so that the last maps of 32x32 images are 4x4. The parameters are the same.
    There is no dropout.

    Args:
        num_classes: outputs of ``fc``.
        image_shape: (C, H, W) of the images.
        width: multiplies all channels, rounded to multiples of 8 as published; the last convolution has at least 1280.

    Attributes:
        roles: the last stage of each resolution, read at the narrow output of its last block, not at an expansion.

    Raises:
        TutelageError: the width is not positive.
    """

    def __init__(
        self, num_classes: int = 1000, image_shape: tuple[int, int, int] = (3, 224, 224), width: float = 1
    ) -> None:
        super().__init__()
        if not width > 0:
            raise TutelageError(f"MobileNetV2 width {width:g} gives no channels: take a positive number, such as 0.5")
        early = 1 if min(image_shape[1:]) < SMALL else 2
        channels = _rounded(32 * width)
        self.stem = _conv(image_shape[0], channels, 3, early)
        stages: list[nn.Sequential] = []
        ends: list[int] = []  # the last stage of each resolution
        for number, (expansion, base, blocks, stride) in enumerate(STAGES):
            first = early if number == 1 else stride
            ends = [*ends, number] if first > 1 or not ends else [*ends[:-1], number]
            layers = []
            for block in range(blocks):
                step = 1 if block else first
                layers.append(InvertedResidual(channels, _rounded(base * width), step, expansion))
                channels = _rounded(base * width)
            stages.append(nn.Sequential(*layers))
        self.stages = nn.Sequential(*stages)
        self.roles = {"stem": "input:stages"} | {f"stage{n}": f"stages.{end}" for n, end in enumerate(ends, 1)}
        last = _rounded(1280 * max(1, width))
        self.last = _conv(channels, last, 1)
        self.fc = nn.Linear(last, num_classes)
        he_initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to logits (B, num_classes)."""
        x = self.last(self.stages(self.stem(x)))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def _conv(in_channels: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU6(inplace=True),
    )


def _rounded(channels: float) -> int:
    """The nearest multiple of 8, at least 8 and not less than nine tenths, as in the authors' code."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels else nearest + 8


FAMILY = Family(
    re.compile(r"mobilenetv2(?:x(?P<width>[0-9]+(?:\.[0-9]+)?))?"),
    MobileNetV2,
    ("mobilenetv2", "mobilenetv2x0.5"),
    "small network for photographs: mobilenetv2, or mobilenetv2x<width> with all channels x width",
    "Sandler et al. 2018, arXiv 1801.04381",
)
