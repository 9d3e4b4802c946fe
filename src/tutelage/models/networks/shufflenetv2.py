"""ShuffleNet V2 for small images, as in the tables of distillation papers (Ma et al. 2018, arXiv 1807.11164)."""

from __future__ import annotations

import re
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.errors import TutelageError
from tutelage.models.family import Family
from tutelage.models.networks.shufflenetv1 import STEM, shuffled

# Width: channels of the three stages and of the last convolution (table 5 of the paper).
WIDTHS = {
    0.5: (48, 96, 192, 1024),
    1.0: (116, 232, 464, 1024),
    1.5: (176, 352, 704, 1024),
    2.0: (244, 488, 976, 2048),
}
UNITS = (4, 8, 4)


class DownUnit(nn.Module):
    """The first unit of a stage: two branches of depthwise and 1x1 convolutions at stride 2, then a shuffle."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, 2, padding=1, groups=in_channels, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = nn.Conv2d(in_channels, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(in_channels, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = nn.Conv2d(half, half, 3, 2, padding=1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, channels, ceil(H / 2), ceil(W / 2))."""
        short = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        long = self.bn4(self.conv4(F.relu(self.bn3(self.conv3(x)), inplace=True)))
        return shuffled(F.relu(torch.cat([short, self.bn5(self.conv5(long))], 1), inplace=True), 2)


class SplitUnit(nn.Module):
    """Half of the channels pass unchanged, half through 1x1, 3x3 depthwise and 1x1 convolutions; both are shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to the same shape."""
        unchanged, out = x.chunk(2, 1)
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(out)), inplace=True)))
        # The unchanged half has been activated before, so that the ReLU leaves it as it is.
        return shuffled(self.relu(torch.cat([unchanged, self.bn3(self.conv3(out))], 1)), 2)


class ShuffleNetV2(nn.Module):
    """ShuffleNet V2: a 1x1 stem without downsampling, three stages, a 1x1 convolution, a mean and a linear classifier.

    The published network for photographs has a strided stem and pooling; this one, for images of about 32 pixels, is
    that of RepDistiller, whose names the parameters have.

    Args:
        num_classes: outputs of ``linear``.
        in_channels: channels of the images.
        width: 0.5, 1, 1.5 or 2.

    Attributes:
        roles: the stem is the input of the first stage; stages halve the resolution at their beginning. The channels
            of a preactivation are in the order before the shuffle.

    Raises:
        TutelageError: there is no network of this width.
    """

    roles: ClassVar[dict[str, str]] = {
        "stem": "input:layer1",
        "stage1": "layer1",
        "stage2": "layer2",
        "stage3": "layer3",
        "preactivation1": "input:layer1.3.relu",
        "preactivation2": "input:layer2.7.relu",
        "preactivation3": "input:layer3.3.relu",
    }

    def __init__(self, num_classes: int = 10, in_channels: int = 3, width: float = 1) -> None:
        super().__init__()
        if width not in WIDTHS:
            raise TutelageError(
                f"there is no ShuffleNet V2 of width {width:g}: take {', '.join(f'{w:g}' for w in WIDTHS)}"
            )
        *stages, last = WIDTHS[width]
        self.conv1 = nn.Conv2d(in_channels, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        inputs = (STEM, *stages)
        self.layer1, self.layer2, self.layer3 = (
            _stage(i, channels, units) for i, channels, units in zip(inputs, stages, UNITS, strict=False)
        )
        self.conv2 = nn.Conv2d(stages[-1], last, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(last)
        self.linear = nn.Linear(last, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_channels, H, W) to logits (B, num_classes)."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def _stage(in_channels: int, channels: int, units: int) -> nn.Sequential:
    return nn.Sequential(DownUnit(in_channels, channels), *(SplitUnit(channels) for _ in range(units - 1)))


FAMILY = Family(
    re.compile(r"shufflenetv2(?:x(?P<width>[0-9]+(?:\.[0-9]+)?))?"),
    ShuffleNetV2,
    ("shufflenetv2", "shufflenetv2x0.5"),
    "ShuffleNet V2 for small images: shufflenetv2, or shufflenetv2x<width> with width 0.5, 1.5 or 2",
    "Ma, Zhang, Zheng, Sun 2018, arXiv 1807.11164",
)
