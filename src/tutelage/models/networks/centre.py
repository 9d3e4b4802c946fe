"""Our own small detectors of centre points: a residual backbone of four stages, a top-down path, and two heads."""

from __future__ import annotations

import re
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.errors import TutelageError
from tutelage.models.centre_points import GEOMETRY
from tutelage.models.family import Family
from tutelage.models.networks.resnet import he_initialise

RARE = -2.19
"""The first bias of the heat map: a probability of 0.1, since most cells are no centre."""


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut, a 1x1 convolution where the shape changes (He et al. 2015, option B)."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, channels, ceil(H / stride), ceil(W / stride))."""
        out: Tensor = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        activated: Tensor = self.relu(out + self.shortcut(x))
        return activated


class TopDown(nn.Module):
    """Adds each stage to the enlarged next one, as Lin et al. 2016 (arXiv 1612.03144), and returns the finest map."""

    def __init__(self, in_channels: list[int], channels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(width, channels, 1, bias=False) for width in in_channels)
        self.smooth = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        )

    def forward(self, maps: list[Tensor]) -> Tensor:
        """The maps of the stages, from fine to coarse, to one of the size of the first: (B, channels, h, w)."""
        total: Tensor | None = None
        for layer, features in reversed(list(zip(self.lateral, maps, strict=True))):
            own = layer(features)
            total = own if total is None else own + F.interpolate(total, own.shape[-2:], mode="nearest")
        smoothed: Tensor = self.smooth(total)
        return smoothed


class CentreNet(nn.Module):
    """A detector: images (B, in_channels, H, W) to a map of centre points (B, num_classes + 4, H / 4, W / 4).

    Its output is what ``models.centre_points`` decodes. A stem divides the resolution by 4, the stages 2 to 4 by 2
    each. Images of any size of at least 32 pixels.

    Args:
        depth: 8n + 2, with n blocks of two convolutions in each of the four stages: 10, 18, 26, 34.
        num_classes: heat maps.
        in_channels: channels of the images.
        width: multiplies all channels: 1 gives 64 in the stem and 64-128-256-512 in the stages.

    Attributes:
        task: the task of this network.
        roles: the stem, the stages, and as embedding the map that the heads read.

    Raises:
        TutelageError: the depth is not 8n + 2, or the number of channels is not an even integer.
    """

    task = "detection"
    roles: ClassVar[dict[str, str]] = {
        "stem": "stem",
        **{f"stage{number}": f"stage{number}" for number in range(1, 5)},
        "embedding": "neck",
    }

    def __init__(self, depth: int, num_classes: int = 10, in_channels: int = 3, width: float = 1) -> None:
        super().__init__()
        blocks, remainder = divmod(depth - 2, 8)
        if blocks < 1 or remainder:
            nearest = 8 * max(blocks, 1) + 2
            raise TutelageError(
                f"centre depth {depth} is not 8n+2 with n of 1 or more: the nearest are {nearest} and {nearest + 8}"
            )
        channels = round(64 * width)
        if channels < 2 or channels % 2 or channels != 64 * width:
            raise TutelageError(
                f"centre width {width} gives {64 * width:g} channels in the first stage; take a positive multiple of "
                "1/32"
            )
        self.stem = nn.Sequential(
            *_convolution(in_channels, channels // 2, stride=2), *_convolution(channels // 2, channels, stride=2)
        )
        widths = [channels * 2**number for number in range(4)]
        self.stage1 = _stage(blocks, channels, widths[0], stride=1)
        self.stage2 = _stage(blocks, widths[0], widths[1], stride=2)
        self.stage3 = _stage(blocks, widths[1], widths[2], stride=2)
        self.stage4 = _stage(blocks, widths[2], widths[3], stride=2)
        self.neck = TopDown(widths, channels)
        self.heat = _head(channels, num_classes)
        self.geometry = _head(channels, GEOMETRY)
        he_initialise(self)
        for name, parameter in self.heat[-1].named_parameters():
            nn.init.constant_(parameter, RARE) if name == "bias" else nn.init.normal_(parameter, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_channels, H, W) to (B, num_classes + 4, ceil(H / 4), ceil(W / 4))."""
        maps = [self.stage1(self.stem(x))]
        for stage in (self.stage2, self.stage3, self.stage4):
            maps.append(stage(maps[-1]))
        features = self.neck(maps)
        return torch.cat([self.heat(features), self.geometry(features)], 1)


def _convolution(in_channels: int, channels: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    ]


def _stage(blocks: int, in_channels: int, channels: int, stride: int) -> nn.Sequential:
    first = Block(in_channels, channels, stride)
    return nn.Sequential(first, *(Block(channels, channels, 1) for _ in range(blocks - 1)))


def _head(channels: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(channels, outputs, 1)
    )


FAMILY = Family(
    re.compile(r"centre(?P<depth>[0-9]+)(?:x(?P<width>[0-9]+(?:\.[0-9]+)?))?"),
    CentreNet,
    ("centre10", "centre18", "centre10x0.25", "centre18x0.5"),
    "detector of centre points, depth 8n+2: centre<depth>, or centre<depth>x<width> with all channels x width",
    "our own, after Zhou, Wang, Krähenbühl 2019, arXiv 1904.07850",
)
