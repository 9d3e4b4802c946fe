"""Small networks for experiments on a CPU; their names on the command line are ``experiments.nets:NAME``."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from tutelage.models.networks.resnet import ResNet


def small_resnet8(num_classes: int, in_channels: int) -> nn.Module:
    """ResNet-8 with channels 8-16-32, on feature maps of a quarter of the image's size."""
    return _strided(8, 0.5, num_classes, in_channels)


def small_resnet8x2(num_classes: int, in_channels: int) -> nn.Module:
    """Like ``small_resnet8``, twice as wide: channels 16-32-64."""
    return _strided(8, 1.0, num_classes, in_channels)


def small_resnet8x4(num_classes: int, in_channels: int) -> nn.Module:
    """Like ``small_resnet8``, four times as wide: channels 32-64-128."""
    return _strided(8, 2.0, num_classes, in_channels)


def mlp32(num_classes: int, in_channels: int) -> nn.Module:
    """One hidden layer of 32 units, for images of 8 x 8."""
    return _mlp(32, num_classes, in_channels)


def mlp256(num_classes: int, in_channels: int) -> nn.Module:
    """One hidden layer of 256 units, for images of 8 x 8."""
    return _mlp(256, num_classes, in_channels)


def mlp128(num_classes: int, in_channels: int) -> nn.Module:
    """One hidden layer of 128 units, for images of 8 x 8."""
    return _mlp(128, num_classes, in_channels)


def small_vgg(num_classes: int, in_channels: int) -> nn.Module:
    """Convolutions of 16, 32 and 64 channels and a hidden layer of 64 in sequence, for images of 28 x 28."""

    def block(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]

    return nn.Sequential(
        *block(in_channels, 16, 2),
        nn.MaxPool2d(2),
        *block(16, 32),
        *block(32, 64),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 9, 64),
        nn.ReLU(),
        nn.Linear(64, num_classes),
    )


def _mlp(width: int, num_classes: int, in_channels: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64 * in_channels, width), nn.ReLU(), nn.Linear(width, num_classes))


def _strided(depth: int, width: float, num_classes: int, in_channels: int) -> nn.Module:
    """A CIFAR ResNet whose first convolution is 5x5 with stride 4, which makes the other layers 16 times cheaper."""
    network = ResNet(depth, num_classes, in_channels, width=width)
    network.conv1 = nn.Conv2d(in_channels, network.conv1.out_channels, 5, stride=4, padding=2, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    return network


def small_resnet9(num_classes: int, in_channels: int) -> nn.Module:
    """ResNet-9 (DAWNBench) at a quarter of its width: 16 to 128 channels, two residual pairs, for images of 32 x 32."""
    return nn.Sequential(
        *_convolution(in_channels, 16),
        *_convolution(16, 32),
        nn.MaxPool2d(2),
        _Residual(32),
        *_convolution(32, 64),
        nn.MaxPool2d(2),
        *_convolution(64, 128),
        nn.MaxPool2d(2),
        _Residual(128),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(128, num_classes),
    )


def _convolution(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


class _Residual(nn.Module):
    """x + two convolutions of x, of equal channels, each with batch normalisation and ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_convolution(channels, channels), *_convolution(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        residual: Tensor = self.body(x)
        return x + residual


def mlp(num_classes: int, inputs: int, width: int = 256) -> nn.Module:
    """Two hidden layers on the flattened image, without normalisation, so that it can memorise small data sets."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(inputs, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, num_classes),
    )


def mlp_500_300(num_classes: int, inputs: int) -> nn.Module:
    """Two hidden layers of 500 and 300 units on the flattened image, the network of MNIST in work on pruning."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(inputs, 500),
        nn.ReLU(),
        nn.Linear(500, 300),
        nn.ReLU(),
        nn.Linear(300, num_classes),
    )


class NoisyMLP(nn.Module):
    """Two hidden layers, 128 and 64 wide, with batch normalisation and, in training, Gaussian input noise."""

    def __init__(self, num_classes: int, inputs: int, noise: float) -> None:
        super().__init__()
        self.noise = noise
        self.body = nn.Sequential(
            nn.Linear(inputs, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 64), nn.BatchNorm1d(64), nn.ReLU()
        )
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C)."""
        x = x.flatten(1)
        logits: Tensor = self.fc(self.body(x + self.noise * torch.randn_like(x) if self.training else x))
        return logits


class GaussianNoise(nn.Module):
    """Adds N(0, std^2) to its input in training."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = std

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) to the same shape."""
        return x + self.std * torch.randn_like(x) if self.training else x


def discriminator(num_classes: int, inputs: int) -> nn.Module:
    """ImprovedGAN's network for MNIST, with two hidden layers of 128: weight normalisation and Gaussian noise."""
    return nn.Sequential(
        nn.Flatten(),
        GaussianNoise(0.3),
        weight_norm(nn.Linear(inputs, 128)),
        nn.ReLU(),
        GaussianNoise(0.5),
        weight_norm(nn.Linear(128, 128)),
        nn.ReLU(),
        GaussianNoise(0.5),
        weight_norm(nn.Linear(128, num_classes)),
    )


def resnet8_half(num_classes: int, in_channels: int) -> nn.Module:
    """ResNet-8 whose first convolution has stride 2, which makes the other layers four times cheaper."""
    return _half(8, num_classes, in_channels)


def resnet20_half(num_classes: int, in_channels: int) -> nn.Module:
    """ResNet-20 whose first convolution has stride 2."""
    return _half(20, num_classes, in_channels)


def _half(depth: int, num_classes: int, in_channels: int) -> nn.Module:
    network = ResNet(depth, num_classes, in_channels)
    network.conv1.stride = (2, 2)
    return network
