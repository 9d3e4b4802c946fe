"""The neural filter: whether an image has an object at all, from the output of the stem."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from tutelage.models.centre_points import GEOMETRY

EMPTY = -1e4
"""The logit of a heat map without any object: its probability is exactly 0."""

INPUT, OUTPUT = 64, 8  # sides of the pooled maps


class NeuralFilter(nn.Module):
    """A small classifier: does the image have an object?

    AdaptiveAvgPool to 64x64, three convolutions (kernels 4, 3, 2; strides 2, 2, 1) with batch normalisation and ReLU,
    AdaptiveAvgPool to 8x8 and a linear layer.

    Args:
        in_channels: of the stem, 64 in the paper, where the convolutions have 64, 32 and 16. [inferred] for others:
            in_channels, half and a quarter of them.
        size: (h, w) of the stem's output. Maps smaller than 64x64 are not enlarged by the first pooling [inferred].

    Attributes:
        threshold: (); an image with a smaller probability of an object has the empty prediction in eval mode.
    """

    threshold: Tensor

    def __init__(self, in_channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        half, quarter = max(1, in_channels // 2), max(1, in_channels // 4)
        self.features = nn.Sequential(
            nn.AdaptiveAvgPool2d((min(INPUT, size[0]), min(INPUT, size[1]))),
            *_convolution(in_channels, in_channels, kernel=4, stride=2),
            *_convolution(in_channels, half, kernel=3, stride=2),
            *_convolution(half, quarter, kernel=2, stride=1),
            nn.AdaptiveAvgPool2d(OUTPUT),
            nn.Flatten(),
        )
        self.classifier = nn.Linear(quarter * OUTPUT**2, 2)
        self.register_buffer("threshold", torch.zeros(()))
        self.empty: Tensor | None = None  # (B,) bool, of the batch that the network is computing

    def forward(self, x: Tensor) -> Tensor:
        """The output of the stem (B, C, h, w) to logits (B, 2), for no object and for an object."""
        logits: Tensor = self.classifier(self.features(x))
        self.empty = None if self.training else object_probability(logits) < self.threshold
        return logits

    def gate(self, outputs: Tensor) -> Tensor:
        """The map of centre points (B, C + 4, h, w) of the same batch, without objects in images that were filtered."""
        empty, self.empty = self.empty, None
        if empty is None:
            return outputs
        heat = outputs[:, :-GEOMETRY].masked_fill(empty[:, None, None, None], EMPTY)
        return torch.cat([heat, outputs[:, -GEOMETRY:]], 1)


class Gate:
    """A hook on a network that applies the filter of one of its layers to the network's output.

    It looks the filter up by its name, so that in a copy of the network it uses the copied filter.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, network: nn.Module, _inputs: Any, outputs: Tensor) -> Tensor:
        """The output of the network, of the images that pass the filter; the empty prediction of the others."""
        return cast(NeuralFilter, network.get_submodule(self.name)).gate(outputs)


def object_probability(logits: Tensor) -> Tensor:
    """The probability of an object, (B, 2) to (B,), in float32."""
    return logits.float().softmax(1)[:, 1]


def _convolution(in_channels: int, channels: int, kernel: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, channels, kernel, stride), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
