"""Small networks for experiments on a CPU, named on the command line as ``experiments.nets:NAME``."""

from __future__ import annotations

from torch import nn

from tutelage.models.resnet import ResNet


def small_resnet8(num_classes: int, in_channels: int) -> nn.Module:
    """ResNet-8 with channels 8-16-32, on maps of a quarter of the image's size."""
    return _strided(8, 0.5, num_classes, in_channels)


def small_resnet8x4(num_classes: int, in_channels: int) -> nn.Module:
    """The same four times as wide: channels 32-64-128."""
    return _strided(8, 2.0, num_classes, in_channels)


def _strided(depth: int, width: float, num_classes: int, in_channels: int) -> nn.Module:
    """A CIFAR ResNet whose first convolution is 5x5 at stride 4, which makes all the rest sixteen times cheaper."""
    network = ResNet(depth, num_classes, in_channels, width=width)
    network.conv1 = nn.Conv2d(in_channels, network.conv1.out_channels, 5, stride=4, padding=2, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    return network
