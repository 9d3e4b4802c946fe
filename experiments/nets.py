"""Small networks for experiments on a CPU, named on the command line as ``experiments.nets:NAME``."""

from __future__ import annotations

from torch import nn

from tutelage.models.resnet import ResNet


def small_resnet8(num_classes: int, in_channels: int) -> nn.Module:
    """ResNet-8 with channels 8-16-32, on maps of half the image's size."""
    return _halved(8, num_classes, in_channels)


def small_resnet14(num_classes: int, in_channels: int) -> nn.Module:
    """ResNet-14 with channels 8-16-32, on maps of half the image's size."""
    return _halved(14, num_classes, in_channels)


def _halved(depth: int, num_classes: int, in_channels: int) -> nn.Module:
    """A CIFAR ResNet whose first convolution takes every second pixel, which makes all the rest four times cheaper."""
    network = ResNet(depth, num_classes, in_channels, width=0.5)
    network.conv1.stride = (2, 2)
    return network
