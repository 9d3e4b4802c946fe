"""The fusion of several feature maps: Kim, Hyun, Chung, Kwak 2020, arXiv 1904.09058."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tutelage.errors import TutelageError


class Fusion(nn.Module):
    """Logits from the concatenation of K feature maps.

    Concatenation (B, sum_k c_k, H, W), depthwise 3x3 convolution, batch normalisation, ReLU, 1x1 convolution to c_1
    channels, batch normalisation, ReLU, mean over H and W, linear layer. The convolutions have no bias. A map that is
    larger than the smallest passes a convolution to the smallest size first.

    Args:
        shapes: (c_k, H_k, W_k) of each map.
        classes: outputs of the linear layer.
    """

    def __init__(self, shapes: Sequence[tuple[int, int, int]], classes: int) -> None:
        super().__init__()
        channels, width = sum(shape[0] for shape in shapes), shapes[0][0]
        height, breadth = (min(shape[axis] for shape in shapes) for axis in (1, 2))
        self.resize = nn.ModuleList([_resize(shape, height, breadth) for shape in shapes])
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, width, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.classifier = nn.Linear(width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_out))

    def forward(self, _logits: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, c_k, H_k, W_k) to logits (B, classes); the network's own logits are not used."""
        joined = torch.cat([resize(values) for resize, values in zip(self.resize, maps, strict=True)], 1)
        fused = torch.relu(self.norm1(self.depthwise(joined)))
        fused = torch.relu(self.norm2(self.pointwise(fused)))
        logits: Tensor = self.classifier(fused.mean((2, 3)))
        return logits


def _resize(shape: tuple[int, int, int], height: int, width: int) -> nn.Module:
    """The identity, or a convolution of equally many channels from this shape to height x width."""
    if shape[1:] == (height, width):
        return nn.Identity()
    stride = (shape[1] // height, shape[2] // width)
    kernel = (shape[1] - stride[0] * (height - 1), shape[2] - stride[1] * (width - 1))
    return nn.Conv2d(shape[0], shape[0], kernel, stride, bias=False)


def build(logits: Tensor, maps: Sequence[Tensor]) -> Fusion:
    """The fusion of maps (B, c_k, H_k, W_k).

    Raises:
        TutelageError: a layer returns no feature map.
    """
    for values in maps:
        if values.ndim != 4:
            raise TutelageError(
                f"feature maps (B, C, H, W) can be fused, and a layer returns shape {tuple(values.shape)}; name a "
                "layer that returns a map"
            )
    shapes = [(int(values.shape[1]), int(values.shape[2]), int(values.shape[3])) for values in maps]
    return Fusion(shapes, logits.shape[1]).to(maps[0])
