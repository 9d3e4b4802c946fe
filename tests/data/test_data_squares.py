"""Square crops with context around a box."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tutelage.data.views.squares import context_side, square_crops


def bilinear(frame: Tensor, x: float, y: float) -> float:
    """The value of a frame (H, W) at a place, where pixel (i, j) is centred at (j + 1/2, i + 1/2)."""
    mean, total = float(frame.mean()), 0.0
    left, top = math.floor(x - 0.5), math.floor(y - 0.5)
    for row in (top, top + 1):
        for column in (left, left + 1):
            weight = (1 - abs(x - 0.5 - column)) * (1 - abs(y - 0.5 - row))
            inside = 0 <= row < frame.shape[0] and 0 <= column < frame.shape[1]
            total += weight * (float(frame[row, column]) if inside else mean)
    return total


def test_context_of_a_square_doubles_its_side() -> None:
    assert context_side(torch.tensor([10.0, 10.0])) == pytest.approx(20.0)
    w, h = 30.0, 10.0
    p = (w + h) / 2
    assert context_side(torch.tensor([[w, h]]))[0] == pytest.approx(math.sqrt((w + p) * (h + p)))


def test_crops_equal_bilinear_interpolation_in_plain_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    frames = torch.rand(2, 3, 7, 9, generator=generator, dtype=torch.float64)
    centres = torch.tensor([[[4.2, 3.1], [0.0, 0.0]], [[9.0, 7.0], [5.0, -2.0]]], dtype=torch.float64)
    sides = torch.tensor([[4.0, 7.5], [3.3, 6.0]], dtype=torch.float64)
    crops = square_crops(frames, centres, sides, 5)
    assert crops.shape == (2, 2, 3, 5, 5)
    for b in range(2):
        for k in range(2):
            for row in range(5):
                for column in range(5):
                    x = float(centres[b, k, 0] + ((column + 0.5) / 5 - 0.5) * sides[b, k])
                    y = float(centres[b, k, 1] + ((row + 0.5) / 5 - 0.5) * sides[b, k])
                    for c in range(3):
                        assert crops[b, k, c, row, column] == pytest.approx(bilinear(frames[b, c], x, y), abs=1e-6)


def test_crop_of_the_size_of_its_square_is_the_part_of_the_frame() -> None:
    frames = torch.arange(80.0).view(1, 1, 8, 10)
    (crop,) = square_crops(frames, torch.tensor([[[5.0, 4.0]]]), torch.tensor([[4.0]]), 4)[0]
    torch.testing.assert_close(crop, frames[0, :, 2:6, 3:7])


def test_outside_of_the_frame_is_its_mean_colour() -> None:
    frames = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    (crop,) = square_crops(frames, torch.tensor([[[-50.0, 3.0]]]), torch.tensor([[8.0]]), 8)[0]
    torch.testing.assert_close(crop, frames.mean((2, 3))[0, :, None, None].expand(3, 8, 8))
