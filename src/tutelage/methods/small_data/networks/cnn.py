"""A plain convolutional network whose channels have a common factor, for studies of capacity."""

from __future__ import annotations

import re

from torch import Tensor, nn

from tutelage.errors import TutelageError
from tutelage.models.family import Family

CHANNELS = (16, 32, 64)


class CNN(nn.Module):
    """Three stages of two 3x3 convolutions and a 2x2 max-pooling, a hidden layer and a linear classifier.

    There is no normalisation. The number of parameters grows about as the square of the width.

    Args:
        num_classes: outputs of ``fc``.
        image_shape: (C, H, W) of the images, at least 8 x 8.
        width: m; the stages have 16m, 32m and 64m channels, the hidden layer 64m units.

    Raises:
        TutelageError: the images are too small, or 16 times the width is not a positive integer.
    """

    def __init__(
        self, num_classes: int = 10, image_shape: tuple[int, int, int] = (3, 32, 32), width: float = 1
    ) -> None:
        super().__init__()
        channels, height, columns = image_shape
        if min(height, columns) < 8:
            raise TutelageError(f"cnn networks take images of at least 8 x 8 pixels, got {height} x {columns}")
        if width <= 0 or 16 * width % 1:
            raise TutelageError(
                f"cnn{width:g} would have {16 * width:g} channels; take a multiple of 1/16, such as 0.5"
            )
        stages = []
        for base in CHANNELS:
            size = int(base * width)
            first, second = nn.Conv2d(channels, size, 3, padding=1), nn.Conv2d(size, size, 3, padding=1)
            stages.append(nn.Sequential(first, nn.ReLU(inplace=True), second, nn.ReLU(inplace=True), nn.MaxPool2d(2)))
            channels = size
        self.stages = nn.Sequential(*stages)
        self.hidden = nn.Linear(channels * (height // 8) * (columns // 8), channels)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to logits (B, num_classes)."""
        logits: Tensor = self.fc(self.relu(self.hidden(self.stages(x).flatten(1))))
        return logits


FAMILY = Family(
    re.compile(r"cnn(?P<width>[0-9]+(?:\.[0-9]+)?)"),
    CNN,
    ("cnn1", "cnn2", "cnn4"),
    "plain convolutional network without normalisation: cnn<width> with all channels x width",
    "after Brigato, Iocchi 2020, arXiv 2003.12843",
)
