"""A network that reads strings from wide images, with one classifier per position of the string."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from tutelage.errors import TutelageError
from tutelage.models.family import Family

COLUMNS = 48
HIDDEN = 256


class BarcodeNet(nn.Module):
    """Four convolutions, the mean over rows of 48 columns, a hidden layer, and a C-way classifier per position.

    A mean over the width would lose the positions of the symbols. Images of 24 x 192 pixels are downsampled 8 times in
    height and 4 times in width.

    Args:
        width: channels of the first convolution; the others have 2, 3 and 3 times as many.
        num_classes: C, the number of symbols.
        in_channels: channels of the images.
        length: L, the number of positions; the classifiers are one linear layer of L x C outputs.

    Attributes:
        roles: the outputs of the convolutions, and the hidden layer.

    Raises:
        TutelageError: the width is 0.
    """

    def __init__(self, width: int = 24, num_classes: int = 10, in_channels: int = 1, length: int = 13) -> None:
        super().__init__()
        if width < 1:
            raise TutelageError(f"a barcode network needs at least 1 channel, got barcode{width}")
        channels, strides = (width, 2 * width, 3 * width, 3 * width), ((4, 2), (2, 1), (1, 2), (1, 1))
        self.convolutions = nn.ModuleList()
        for inputs, outputs, stride in zip((in_channels, *channels), channels, strides, strict=False):
            rows = stride[0] + 1 if stride[0] > 1 else 3
            convolution = nn.Conv2d(inputs, outputs, (rows, 5), stride, (rows // 2, 2), bias=False)
            self.convolutions.append(nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU()))
        self.columns = nn.AdaptiveAvgPool2d((1, COLUMNS))
        self.hidden = nn.Sequential(nn.Linear(channels[-1] * COLUMNS, HIDDEN), nn.ReLU())
        self.heads = nn.Linear(HIDDEN, length * num_classes)
        self.form = length, num_classes
        self.roles = {
            **{f"stage{number}": f"convolutions.{number - 1}" for number in range(1, 5)},
            "embedding": "hidden",
        }

    def forward(self, images: Tensor) -> Tensor:
        """(B, in_channels, H, W) to logits (B, L, C)."""
        for convolution in self.convolutions:
            images = convolution(images)
        logits: Tensor = self.heads(self.hidden(torch.flatten(self.columns(images), 1)))
        return logits.view(-1, *self.form)


FAMILY = Family(
    re.compile(r"barcode(?P<width>[0-9]+)"),
    BarcodeNet,
    ("barcode8", "barcode24"),
    "reader of strings of 13 symbols: barcode<channels of the first convolution>",
    "after Do et al. 2020, arXiv 2004.06297",
)
