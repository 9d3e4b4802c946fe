"""The residual networks for small images of He, Zhang, Ren, Sun 2015 (arXiv 1512.03385, section 4.2)."""

from __future__ import annotations

import re
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.errors import TutelageError
from tutelage.models.family import Family


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut without parameters (the paper's option A).

    The shortcut takes every ``stride``-th pixel and adds channels of zeros, half before and half after.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)  # a module, so that its input can be read
        self.stride = stride
        self.before = (channels - in_channels) // 2
        self.after = channels - in_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, channels, ceil(H / stride), ceil(W / stride))."""
        out: Tensor = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        # Pixels 0, stride, 2 stride, ...: the centres of the strided convolution's windows, odd sizes too.
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.before or self.after:  # padding by 0 would copy the tensor and its gradient
            shortcut = F.pad(shortcut, (0, 0, 0, 0, self.before, self.after))
        activated: Tensor = self.relu(out + shortcut)
        return activated


class ResNet(nn.Module):
    """A CIFAR ResNet: a 3x3 stem, three stages of n basic blocks, 6n+2 layers; any image size.

    Convolutions start from He's normal initialisation (fan-out), normalisations from 1 and 0.

    Args:
        depth: 6n+2: 8, 14, 20, 26, 32, 44, 56, 110, ... ResNet-50 is then the CIFAR network of 50 layers, not
            ImageNet's.
        num_classes: outputs of ``fc``.
        in_channels: channels of the images.
        width: multiplies *all* channels, the stem's too: 4 gives a stem of 64 and stages of 64-128-256.
            (RepDistiller's ``resnet8x4`` has a stem of 32 and 1x1 convolutions as shortcuts, hence another
            number of parameters.) Fractions are possible if 16 times the width is an integer: 0.5 gives 8-16-32.

    Attributes:
        roles: the stem is the input of the first stage; the stages are found by tracing.

    Raises:
        TutelageError: the depth is not 6n+2, or the number of channels is not an integer.
    """

    roles: ClassVar[dict[str, str]] = {"stem": "input:layer1"}

    def __init__(self, depth: int, num_classes: int = 10, in_channels: int = 3, width: float = 1) -> None:
        super().__init__()
        blocks = blocks_per_stage("ResNet", depth, 2)
        channels = round(16 * width)
        if channels < 1 or channels != 16 * width:
            raise TutelageError(
                f"ResNet width {width} gives {16 * width:g} channels in the first stage:"
                " take a positive multiple of 1/16"
            )
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.layer1 = _stage(blocks, channels, channels, stride=1)
        self.layer2 = _stage(blocks, channels, 2 * channels, stride=2)
        self.layer3 = _stage(blocks, 2 * channels, 4 * channels, stride=2)
        self.fc = nn.Linear(4 * channels, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the convolutions; the other layers initialise themselves."""
        he_initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_channels, H, W) to logits (B, num_classes)."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def _stage(blocks: int, in_channels: int, channels: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))


def blocks_per_stage(family: str, depth: int, outside: int) -> int:
    """The n of ``depth = 6n + outside`` (three stages of n blocks of two layers), at least 1."""
    blocks, remainder = divmod(depth - outside, 6)
    if blocks < 1 or remainder:
        nearest = 6 * max(blocks, 1) + outside
        raise TutelageError(
            f"{family} depth {depth} is not 6n+{outside} with n of 1 or more: the nearest "
            f"are {nearest} and {nearest + 6}"
        )
    return blocks


def he_initialise(network: nn.Module) -> None:
    """Initialise all convolutions from He's normal distribution, variance 2 / (k k out_channels)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


FAMILY = Family(
    re.compile(r"resnet(?P<depth>[0-9]+)(?:x(?P<width>[0-9]+(?:\.[0-9]+)?))?"),
    ResNet,
    (*(f"resnet{depth}" for depth in (8, 14, 20, 26, 32, 44, 56, 110)), "resnet8x4", "resnet32x4"),
    "CIFAR ResNet of depth 6n+2: resnet<depth>, or resnet<depth>x<width> with all channels x width",
    "He, Zhang, Ren, Sun 2015, arXiv 1512.03385",
)
