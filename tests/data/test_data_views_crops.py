"""Augmented views: crops and flips."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tutelage.data import CropsAndFlips


def crop_and_flip(image: np.ndarray, view: int, pad: int) -> np.ndarray:
    """Crop and flip of one (H, W, C) image by pixel loops, as (C, H, W)."""
    height, width, channels = image.shape
    side = 2 * pad + 1
    flip, position = divmod(view, side * side)
    top, left = divmod(position, side)
    answer = np.zeros((channels, height, width), np.uint8)
    for row in range(height):
        for column in range(width):
            y, x = row + top - pad, column + left - pad
            if 0 <= y < height and 0 <= x < width:
                answer[:, row, width - 1 - column if flip else column] = image[y, x]
    return answer


@pytest.mark.parametrize("shape", [(5, 5, 3), (4, 6, 1)])
@pytest.mark.parametrize(("pad", "flip", "count"), [(1, True, 18), (4, True, 162), (2, False, 25), (0, True, 2)])
def test_view_number_determines_crop_and_flip(pad, flip, count, shape):
    views = CropsAndFlips(pad, flip)
    assert views.count == count
    images = np.random.default_rng(0).integers(1, 256, (count, *shape), dtype=np.uint8)
    augmented = views(torch.from_numpy(images), torch.arange(count)).permute(0, 3, 1, 2)
    assert augmented.dtype == torch.uint8
    for view in range(count):
        np.testing.assert_array_equal(augmented[view], crop_and_flip(images[view], view, pad))


def test_views_of_one_image_are_all_different():
    image = torch.arange(1, 65, dtype=torch.uint8).view(1, 8, 8, 1)
    views = CropsAndFlips(2, True)
    augmented = views(image.expand(views.count, -1, -1, -1), torch.arange(views.count))
    assert len(augmented.flatten(1).unique(dim=0)) == views.count == 50


@pytest.mark.parametrize("views", [CropsAndFlips(), CropsAndFlips(3), CropsAndFlips(4, True)])
def test_identity_view_is_the_image(views):
    images = torch.randint(256, (3, 9, 9, 3), dtype=torch.uint8)
    identity = views(images, torch.full((3,), views.identity))
    assert torch.equal(identity, images)
    assert identity.is_contiguous()


def test_negative_padding_is_refused(refused):
    with refused("-1", "0 or more"):
        CropsAndFlips(-1)
