"""ShuffleNet for small images, as in the tables of distillation papers (Zhang et al. 2018, arXiv 1707.01083)."""

from __future__ import annotations

import re
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.models.family import Family

GROUPS = 3
STEM = 24
STAGES = ((240, 4), (480, 8), (960, 4))  # channels, units


def shuffled(x: Tensor, groups: int) -> Tensor:
    """The channels of (B, C, H, W) in another order: the first of each group, then the second of each, and so on."""
    grouped = x.view(x.shape[0], groups, -1, *x.shape[2:])
    return grouped.transpose(1, 2).flatten(1, 2)


class ShuffleUnit(nn.Module):
    """A grouped 1x1 convolution, a channel shuffle, a 3x3 depthwise and a grouped 1x1 convolution beside a shortcut.

    At stride 2 the shortcut is a 3x3 mean, and its channels are appended.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        own = channels - in_channels if stride == 2 else channels
        inner = own // 4
        self.groups = 1 if in_channels == STEM else GROUPS
        self.conv1 = nn.Conv2d(in_channels, inner, 1, groups=self.groups, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, own, 1, groups=GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(own)
        self.relu = nn.ReLU(inplace=True)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, channels, ceil(H / stride), ceil(W / stride))."""
        out = shuffled(F.relu(self.bn1(self.conv1(x)), inplace=True), self.groups)
        out = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(out)), inplace=True)))
        out = out + x if self.stride == 1 else torch.cat([out, F.avg_pool2d(x, 3, 2, padding=1)], 1)
        activated: Tensor = self.relu(out)
        return activated


class ShuffleNetV1(nn.Module):
    """ShuffleNet 1x (g = 3): a 1x1 stem without downsampling, three stages, a mean and a linear classifier.

    The published network for photographs has a strided stem and pooling, and no activation of the depthwise
    convolution; this one, for images of about 32 pixels, is that of RepDistiller, whose names the parameters have.

    Args:
        num_classes: outputs of ``linear``.
        in_channels: channels of the images.

    Attributes:
        roles: the stem is the input of the first stage; stages halve the resolution at their beginning.
    """

    roles: ClassVar[dict[str, str]] = {"stem": "input:layer1"} | {f"stage{n}": f"layer{n}" for n in range(1, 4)}

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        inputs = (STEM, *(channels for channels, _ in STAGES))
        self.layer1, self.layer2, self.layer3 = (_stage(i, *stage) for i, stage in zip(inputs, STAGES, strict=False))
        self.linear = nn.Linear(inputs[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_channels, H, W) to logits (B, num_classes)."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def _stage(in_channels: int, channels: int, units: int) -> nn.Sequential:
    first = ShuffleUnit(in_channels, channels, 2)
    return nn.Sequential(first, *(ShuffleUnit(channels, channels, 1) for _ in range(units - 1)))


FAMILY = Family(
    re.compile(r"shufflenetv1"),
    ShuffleNetV1,
    ("shufflenetv1",),
    "ShuffleNet 1x (g = 3) for small images",
    "Zhang, Zhou, Lin, Sun 2018, arXiv 1707.01083",
)
