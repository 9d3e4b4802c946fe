"""Segmentation networks: a small residual encoder and a feature pyramid as decoder."""

from __future__ import annotations

import re
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.errors import TutelageError
from tutelage.models.family import Family
from tutelage.models.networks.resnet import BasicBlock, he_initialise

STAGES = 4


class FPN(nn.Module):
    """A residual encoder of four stages and a top-down decoder, which returns one logit map per class.

    The encoder has a 3x3 stem of stride 2 and four stages of n basic blocks, the later three of stride 2, so that its
    maps have 1/2, 1/4, 1/8 and 1/16 of the image's sides: 8n+2 layers. The decoder is that of feature pyramid networks:
    a 1x1 convolution of each stage's map, added up from the smallest to the largest map, then a 3x3 convolution and a
    1x1 classifier. Its logits are enlarged bilinearly to the size of the image. Any image size.

    Convolutions start from He's normal initialisation, by the fan-out, and the 1x1 convolutions of the decoder by the
    fan-in; the classifier starts from torch's. With small weights (standard deviation 0.01) it learned several times
    more slowly.

    Args:
        depth: 8n+2: 10, 18, 26, 34, ...
        width: multiplies all channels: those of the stages are 16, 32, 64 and 128 times the width, those of the decoder
            32 times.
        num_classes: the number of logit maps.
        in_channels: channels of the images.

    Attributes:
        roles: the stages are those of the encoder.

    Raises:
        TutelageError: the depth is not 8n+2, or the number of channels is not an integer.
    """

    roles: ClassVar[dict[str, str]] = {"stem": "input:layer1"} | {
        f"stage{number}": f"layer{number}" for number in range(1, STAGES + 1)
    }

    def __init__(self, depth: int, width: float = 1, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        blocks, remainder = divmod(depth - 2, 2 * STAGES)
        if blocks < 1 or remainder:
            nearest = 2 * STAGES * max(blocks, 1) + 2
            raise TutelageError(
                f"FPN depth {depth} is not 8n+2 with n of 1 or more: the nearest are {nearest} and {nearest + 8}"
            )
        channels = round(16 * width)
        if channels < 1 or channels != 16 * width:
            raise TutelageError(
                f"FPN width {width} gives {16 * width:g} channels in the first stage: take a positive multiple of 1/16"
            )
        self.conv1 = nn.Conv2d(in_channels, channels, 3, 2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        widths = [channels * 2**stage for stage in range(STAGES)]
        self.layer1 = _stage(blocks, channels, widths[0], 1)
        self.layer2 = _stage(blocks, widths[0], widths[1], 2)
        self.layer3 = _stage(blocks, widths[1], widths[2], 2)
        self.layer4 = _stage(blocks, widths[2], widths[3], 2)
        decoder = 2 * channels
        self.lateral = nn.ModuleList(nn.Conv2d(width, decoder, 1) for width in widths)
        self.smooth = nn.Sequential(
            nn.Conv2d(decoder, decoder, 3, padding=1, bias=False), nn.BatchNorm2d(decoder), nn.ReLU(inplace=True)
        )
        self.classifier = nn.Conv2d(decoder, num_classes, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the convolutions; normalisations initialise themselves."""
        he_initialise(self)
        for parameter in self.lateral.parameters():
            if parameter.ndim > 1:
                nn.init.kaiming_normal_(parameter)
            else:
                nn.init.zeros_(parameter)
        self.classifier.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_channels, H, W) to logits (B, num_classes, H, W)."""
        size = x.shape[2:]
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        maps = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            maps.append(x)
        pyramid = self.lateral[-1](maps[-1])
        for lateral, features in zip(reversed(self.lateral[:-1]), reversed(maps[:-1]), strict=True):
            pyramid = lateral(features) + F.interpolate(pyramid, features.shape[2:], mode="nearest")
        logits: Tensor = self.classifier(self.smooth(pyramid))
        return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def _stage(blocks: int, in_channels: int, channels: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))


FAMILY = Family(
    re.compile(r"fpn-(?P<depth>[0-9]+)(?:-(?P<width>[0-9]+(?:\.[0-9]+)?))?"),
    FPN,
    ("fpn-10", "fpn-18", "fpn-34", "fpn-10-0.5", "fpn-18-2"),
    "for segmentation: encoder of depth 8n+2 and feature pyramid, fpn-<depth> or fpn-<depth>-<width>",
    "encoder: arXiv 1512.03385; decoder after Lin et al. 2017, arXiv 1612.03144",
)
