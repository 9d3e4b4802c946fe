"""MobileNetV2 of half width for small images, as in the tables of distillation papers (arXiv 1801.04381)."""

from __future__ import annotations

import re
from typing import ClassVar

from torch import Tensor, nn

from tutelage.models.family import Family
from tutelage.models.networks.mobilenetv2 import STAGES
from tutelage.models.networks.resnet import he_initialise

LAST = 1280


class Bottleneck(nn.Module):
    """A 1x1 expansion, a 3x3 depthwise convolution and a linear 1x1 projection; a shortcut where shapes allow it."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = in_channels * expansion
        self.conv = nn.Sequential(
            *_convolution(in_channels, inner, 1),
            *_convolution(inner, inner, 3, stride, groups=inner),
            nn.Conv2d(inner, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.shortcut = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, channels, ceil(H / stride), ceil(W / stride))."""
        out: Tensor = self.conv(x)
        return x + out if self.shortcut else out


class MobileHalf(nn.Module):
    """The ``mobile_half`` of RepDistiller: MobileNetV2 with half of the channels, which downsamples images 16 times.

    It differs from ``mobilenetv2x0.5`` in the strides (the stem has 2, the second stage 1), in channels that are halved
    without rounding, in a 1x1 convolution before the first depthwise one, and in ReLU in place of ReLU6. Convolutions
    start from He's normal initialisation (fan-out), the weights of the classifier from N(0, 0.01^2). Parameters have
    RepDistiller's names.

    Args:
        num_classes: outputs of the classifier.
        in_channels: channels of the images.

    Attributes:
        roles: the last of the narrow maps of each resolution, as in RepDistiller.
    """

    roles: ClassVar[dict[str, str]] = {
        "stem": "conv1",
        "stage1": "blocks.1",
        "stage2": "blocks.2",
        "stage3": "blocks.4",
        "stage4": "blocks.6",
    }

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        channels = 16
        self.conv1 = nn.Sequential(*_convolution(in_channels, channels, 3, 2))
        self.blocks = nn.ModuleList()
        for number, (expansion, width, count, stride) in enumerate(STAGES):
            strides = [1 if number == 1 else stride] + [1] * (count - 1)
            blocks = []
            for step in strides:
                blocks.append(Bottleneck(channels, width // 2, step, expansion))
                channels = width // 2
            self.blocks.append(nn.Sequential(*blocks))
        self.conv2 = nn.Sequential(*_convolution(channels, LAST, 1))
        classifier = nn.Linear(LAST, num_classes)
        nn.init.normal_(classifier.weight, std=0.01)
        nn.init.zeros_(classifier.bias)
        self.classifier = nn.Sequential(classifier)
        he_initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_channels, H, W) to logits (B, num_classes)."""
        x = self.conv1(x)
        for blocks in self.blocks:
            x = blocks(x)
        logits: Tensor = self.classifier(self.conv2(x).mean((2, 3)))
        return logits


def _convolution(in_channels: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    ]


FAMILY = Family(
    re.compile(r"mobile_half"),
    MobileHalf,
    ("mobile_half",),
    "MobileNetV2 of half width for small images, as in tables of distillation papers",
    "Sandler et al. 2018, arXiv 1801.04381",
)
