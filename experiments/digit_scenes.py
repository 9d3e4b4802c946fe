"""Scenes of handwritten digits on textured canvases, some of them empty, with a box around each digit."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.data import Boxes, CropsAndFlips, Data, Pixels, Split, open_data

SIDE = 64
CLASSES = ("0", "1", "4", "7")
MOST = 3  # digits in a scene
EMPTY = 0.4  # share of scenes without a digit
SCALES = (2, 3)  # a digit has 16 or 24 pixels
SPLITS = {"train": 512, "validation": 192, "test": 384}
SHARES = {"train": 0.5, "validation": 0.2, "test": 0.3}  # of the digits


def scenes(seed: int) -> Data:
    """A data set of scenes; no digit is in two of its splits."""
    generator = torch.Generator().manual_seed(seed)
    digits = open_data("digits")
    images = torch.cat([_pixels(split) for split in (digits.train, digits.test)])
    labels = torch.cat([digits.train.labels, digits.test.labels])
    numbers = torch.full((10,), -1)
    numbers[[int(name) for name in CLASSES]] = torch.arange(len(CLASSES))
    rows = (numbers[labels] >= 0).nonzero().squeeze(1)
    rows = rows[torch.randperm(len(rows), generator=generator)]
    splits, start = dict[str, Split](), 0
    for split, count in SPLITS.items():
        end = start + round(SHARES[split] * len(rows))
        own, start = rows[start:end], end
        drawn = [_scene(images[own], numbers[labels[own]], generator) for _ in range(count)]
        pixels, boxes = (torch.stack(values) for values in zip(*drawn, strict=True))
        splits[split] = Split.of(pixels, boxes, Pixels(), Boxes())
    train, held_out, test = splits.values()
    return Data("digit scenes", CLASSES, train, test, held_out, views=CropsAndFlips(pad=4))


def _pixels(split: Split) -> Tensor:
    """The digits (N, 8, 8) in [0, 1]."""
    assert isinstance(split.inputs, Tensor)
    return split.inputs[..., 0].float() / 255


def _scene(digits: Tensor, numbers: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One scene (64, 64, 1) uint8 and its boxes (MOST, 5): digits that do not overlap, on a texture of three scales."""
    canvas = torch.full((SIDE, SIDE), 0.3)
    for cells in (4, 16, SIDE):
        noise = torch.randn(1, 1, cells, cells, generator=generator)
        canvas += 0.07 * F.interpolate(noise, (SIDE, SIDE), mode="bilinear")[0, 0]
    boxes = torch.zeros(MOST, 5)
    boxes[:, 4] = -1

    def draw(most: int) -> int:
        return int(torch.randint(most, (), generator=generator))

    count = 0 if float(torch.rand((), generator=generator)) < EMPTY else 1 + draw(MOST)
    for row in range(count):
        digit, scale = draw(len(digits)), SCALES[draw(len(SCALES))]
        side = 8 * scale
        x, y = draw(SIDE - side), draw(SIDE - side)
        if _overlaps(boxes, x, y, side):
            continue
        glyph = digits[digit].repeat_interleave(scale, 0).repeat_interleave(scale, 1)
        part = canvas[y : y + side, x : x + side]
        part += 0.6 * glyph
        inked = (glyph > 0.15).nonzero()
        top, left = inked.amin(0).tolist()
        bottom, right = (inked.amax(0) + 1).tolist()
        boxes[row] = torch.tensor([x + left, y + top, x + right, y + bottom, int(numbers[digit])]).float()
    return (255 * canvas.clamp(0, 1)).round().to(torch.uint8)[..., None], boxes


def _overlaps(boxes: Tensor, x: int, y: int, side: int) -> bool:
    present = boxes[boxes[:, 4] >= 0]
    apart = (present[:, 0] >= x + side) | (present[:, 2] <= x) | (present[:, 1] >= y + side) | (present[:, 3] <= y)
    return bool((~apart).any())
