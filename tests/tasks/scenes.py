"""Small scenes for detectors: bright squares and dark frames on noise."""

from __future__ import annotations

import torch
from torch import Tensor

from tutelage.data import Boxes, Data, Pixels, Split

SIZE = 64
CLASSES = ("square", "frame")


def scenes(count: int, seed: int, size: int = SIZE, most: int = 2, empty: float = 0.3) -> tuple[Tensor, Tensor]:
    """Images (N, size, size, 1) uint8 and their boxes (N, most, 5); a share has no object.

    Objects may overlap.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    images = torch.randint(90, 140, (count, size, size, 1), generator=generator).to(torch.uint8)
    boxes = torch.zeros(count, most, 5)
    boxes[..., 4] = -1
    for number in range(count):
        if torch.rand((), generator=generator) < empty:
            continue
        for row in range(draw(1, most + 1)):
            side, kind = draw(size // 6, size // 3), draw(0, 2)
            x, y = draw(0, size - side), draw(0, size - side)
            images[number, y : y + side, x : x + side] = 235 if kind == 0 else 20
            if kind == 1:
                images[number, y + 3 : y + side - 3, x + 3 : x + side - 3] = 120
            boxes[number, row] = torch.tensor([x, y, x + side, y + side, kind]).float()
    return images, boxes


def scene_data(train: int = 96, other: int = 32, size: int = SIZE, seed: int = 0) -> Data:
    """A data set of scenes with a held-out split."""
    splits = [
        Split.of(*scenes(count, 3 * seed + number, size), modality=Pixels(), targets=Boxes())
        for number, count in enumerate((train, other, other))
    ]
    return Data("scenes", CLASSES, *splits)
