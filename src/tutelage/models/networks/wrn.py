"""The wide residual networks of Zagoruyko and Komodakis 2016 (arXiv 1605.07146)."""

from __future__ import annotations

import re
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.errors import TutelageError
from tutelage.models.family import Family
from tutelage.models.networks.resnet import blocks_per_stage, he_initialise


class WideBlock(nn.Module):
    """Batch norm, ReLU and 3x3 convolution, twice, plus a shortcut: the identity, or a 1x1 convolution.

    The 1x1 convolution, used if shapes change, takes the activated input, the identity shortcut the raw input.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        identity = in_channels == channels and stride == 1
        self.shortcut = None if identity else nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, channels, ceil(H / stride), ceil(W / stride)), not activated."""
        active = F.relu(self.bn1(x), inplace=True)
        out: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active)), inplace=True))
        return out + (x if self.shortcut is None else self.shortcut(active))


class WRN(nn.Module):
    """WRN-d-k: a stem of 16 channels and three groups of n pre-activation blocks, 6n+4 layers; no dropout.

    Convolutions start from He's normal initialisation (fan-out), normalisations from 1 and 0, the bias of
    ``fc`` from 0.

    Args:
        depth: d = 6n+4: 10, 16, 22, 28, 40, ...
        width: k: the groups have 16k, 32k and 64k channels.
        num_classes: outputs of ``fc``.
        in_channels: channels of the images.

    Attributes:
        roles: the outputs of the groups, *before* the next batch norm and ReLU, as in the attention-transfer paper;
            tracing would choose the activated ``bn`` as the last stage. The preactivations are the outputs of the next
            batch norm, as in the code of Heo et al. 2019 (arXiv 1904.01866).

    Raises:
        TutelageError: the depth is not 6n+4, or the width is not positive.
    """

    roles: ClassVar[dict[str, str]] = {
        "stem": "conv1",
        "stage1": "block1",
        "stage2": "block2",
        "stage3": "block3",
        "preactivation1": "block2.0.bn1",
        "preactivation2": "block3.0.bn1",
        "preactivation3": "bn",
    }

    def __init__(self, depth: int, width: int, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        blocks = blocks_per_stage("WRN", depth, 4)
        if width < 1:
            raise TutelageError(f"WRN width {width} leaves no channels: take 1 or more")
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.block1 = _group(blocks, 16, 16 * width, stride=1)
        self.block2 = _group(blocks, 16 * width, 32 * width, stride=2)
        self.block3 = _group(blocks, 32 * width, 64 * width, stride=2)
        self.bn = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the convolutions, and set the classifier's bias to 0; the other layers initialise themselves."""
        he_initialise(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_channels, H, W) to logits (B, num_classes)."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        logits: Tensor = self.fc(F.relu(self.bn(x), inplace=True).mean((2, 3)))
        return logits


def _group(blocks: int, in_channels: int, channels: int, stride: int) -> nn.Sequential:
    first = WideBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(WideBlock(channels, channels, 1) for _ in range(blocks - 1)))


FAMILY = Family(
    re.compile(r"wrn-(?P<depth>[0-9]+)-(?P<width>[0-9]+)"),
    WRN,
    ("wrn-10-2", "wrn-16-2", "wrn-28-2", "wrn-40-2", "wrn-40-1", "wrn-28-10"),
    "wide ResNet of depth 6n+4: wrn-<depth>-<width>",
    "Zagoruyko, Komodakis 2016, arXiv 1605.07146",
)
