"""Units with a path beside their layers, in the styles of several libraries."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Squeeze(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))).sigmoid()  # type: ignore[no-any-return]


class DropPath(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.rand(len(x), 1, 1, 1) < 0.8) if self.training else x


class Timm(nn.Module):
    """Activations as modules, optional parts, squeeze and excitation, a sum in place."""

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, channels, 1, bias=False), nn.BatchNorm2d(channels)
        self.act1, self.drop_block, self.aa = nn.ReLU(inplace=True), nn.Identity(), None
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels)
        self.se, self.drop_path, self.act2 = Squeeze(channels), DropPath(), nn.ReLU(inplace=True)
        same = inputs == channels and stride == 1
        pool = nn.AvgPool2d(stride, ceil_mode=True)
        self.downsample = (
            None if same else nn.Sequential(pool, nn.Conv2d(inputs, channels, 1), nn.BatchNorm2d(channels))
        )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.drop_block(self.bn1(self.conv1(x)))
        x = self.act1(x)
        if self.aa is not None:
            x = self.aa(x)
        x = self.se(self.bn2(self.conv2(x)))
        if self.drop_path is not None:
            x = self.drop_path(x)
        if self.downsample is not None:
            shortcut = self.downsample(shortcut)
        x += shortcut
        return self.act2(x)  # type: ignore[no-any-return]


class Written(nn.Module):
    """A sum that depends on shapes, after a shuffle of the channels that reads the length of the batch."""

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(inputs, channels, 3, stride, 1), nn.BatchNorm2d(channels))
        self.last = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.tanh(self.branch(x))
        _, _, height, width = out.shape
        out = out.view(len(x), 2, -1, height, width).transpose(1, 2).flatten(1, 2)
        out = self.last(out)
        if x.shape[-2:] != out.shape[-2:]:
            x = F.avg_pool2d(x, 2)
        if x.shape[1] < out.shape[1]:
            x = torch.cat([x, x.new_zeros(x.shape[0], out.shape[1] - x.shape[1], *x.shape[2:])], 1)
        return torch.relu(x + out)


class Preactivation(nn.Module):
    """The first activation overwrites the input, so the shortcut is activated, too."""

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn, self.relu = nn.BatchNorm2d(inputs), nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, 1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(x))
        return self.shortcut(x).add(self.conv2(F.gelu(self.conv1(x))))


class ConvNeXt(nn.Module):
    """A factor per channel on the branch, and an attribute that is a function."""

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(inputs, channels, 3, stride, 1), nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.full((channels, 1, 1), 0.3))
        self.shortcut = (lambda x: x) if stride == 1 else (lambda x: F.max_pool2d(x, 2).repeat(1, 2, 1, 1))

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        out = self.gamma * self.conv2(F.gelu(self.conv1(x)))
        return torch.add(self.shortcut(x), out if scale is None else scale * out)


def network(block: Callable[[int, int, int], nn.Module], activates: bool = True) -> nn.Module:
    """A stem, three blocks of 4, 4 and 8 channels, and a classifier, for images (B, 1, 8, 8)."""
    body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(inplace=True))
    blocks = nn.Sequential(block(4, 4, 1), block(4, 8, 2), block(8, 8, 1))
    end = nn.Identity() if activates else nn.ReLU(inplace=True)
    return nn.Sequential(body, blocks, end, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


class DenseLayer(nn.Module):
    """Returns its input and four new channels."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 6, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))
        return torch.cat([x, new], 1)


class NewChannels(DenseLayer):
    """Takes a list of maps and returns four new channels, as torchvision's layers."""

    def forward(self, maps: list[Tensor]) -> Tensor:  # type: ignore[override]
        x = torch.cat(maps, 1)
        return self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))  # type: ignore[no-any-return]


class DenseBlock(nn.ModuleDict):
    """Layers that take the list of all maps before them."""

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for layer in self.values():
            maps.append(layer(maps))
        return torch.cat(maps, 1)


def dense(listed: bool) -> nn.Module:
    """A DenseNet of three layers in the style of torchvision, or with layers that concatenate."""
    widths = (4, 8, 12)
    layers = {f"layer{n}": (NewChannels if listed else DenseLayer)(width) for n, width in enumerate(widths, 1)}
    block = DenseBlock(layers) if listed else nn.Sequential(*layers.values())
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        block,
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 4),
    )
