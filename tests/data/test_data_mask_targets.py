"""Masks as targets: storing, checks, counts, and how they move with the views."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tutelage.data import CropsAndFlips, Data, RandomResizedCrop, RandomViews
from tutelage.data.loader import Batches
from tutelage.data.targets import Masks

IMAGES = torch.zeros(4, 6, 8, 3, dtype=torch.uint8)


def mask_data(labels: Any, images: Tensor = IMAGES, **options: Any) -> Data:
    part = (images, labels)
    return Data.from_arrays(part, part, targets=Masks(), name="made", **options)


def test_void_is_255_or_minus_1() -> None:
    labels = torch.randint(3, (4, 6, 8))
    labels[0, 0], labels[1, 1] = 255, -1
    stored = mask_data(labels).train.labels
    assert stored.dtype == torch.int16
    assert torch.equal(stored.long(), labels.where(labels < 255, -1))
    assert torch.equal(mask_data(labels.remainder(256).to(torch.uint8)).train.labels, stored)
    assert mask_data(labels.bool().numpy()).num_classes == 2


def test_counts_are_pixels() -> None:
    labels = torch.randint(-1, 3, (4, 6, 8))
    labels[2] = -1
    data = mask_data(labels, classes=("a", "b", "c", "d"))
    counts = [sum(int(value) == c for value in labels.flatten()) for c in range(4)]
    assert data.targets.counts(data.train.labels, data.classes) == counts
    assert data.targets.labelled(data.train.labels).tolist() == [True, True, False, True]
    assert data.targets.strata(data.train.labels).tolist() == [0, 0, -1, 0]


@pytest.mark.parametrize(
    ("labels", "pieces"),
    [
        (torch.zeros(4, 6, 8), ("float32", "(N, H, W) integers")),
        (torch.zeros(4, 6, 8, 3, dtype=torch.uint8), ("colours are no class numbers",)),
        (torch.zeros(4, dtype=torch.int64), ("(N, H, W) integers",)),
        (torch.full((4, 6, 8), 256), ("256 at [0, 0, 0]", "0 to 254")),
        (torch.full((4, 6, 8), -2), ("-2 at [0, 0, 0]", "-1 or 255 is void")),
        (torch.zeros(4, 8, 6, dtype=torch.int64), ("masks of 8x6", "(4, 6, 8, 3)", "a mask of its size")),
        (torch.zeros(3, 6, 8, dtype=torch.int64), ("as many images as labels",)),
        (None, ("masks cannot be left out",)),
    ],
)
def test_other_arrays_are_refused(labels: Any, pieces: tuple[str, ...], refused: Any) -> None:
    with refused(*pieces):
        mask_data(labels)


def test_class_numbers_without_a_name_are_refused(refused: Any) -> None:
    labels = torch.zeros(4, 6, 8, dtype=torch.int64)
    labels[2, 1, 1] = 5
    with refused("class 5 in mask 2", "2 classes, 0 to 1"):
        mask_data(labels, classes=("a", "b"))


def test_masks_move_with_their_images() -> None:
    """Images whose pixels are their class numbers times 40: each view of an image shows its mask."""
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(5, (16, 4, 4), generator=generator)
    labels = blocks.repeat_interleave(4, 1).repeat_interleave(4, 2)
    images = (40 * labels + 40).to(torch.uint8)[..., None].expand(-1, -1, -1, 3).contiguous()
    data = mask_data(labels, images, views=CropsAndFlips(pad=3, flip=True))
    moved = 0
    for batch in Batches(data.train, batch_size=16, views=data.views).epoch(0):
        visible = (batch.inputs[:, 0] * 255 / 40).round().long() - 1  # black beyond the image: -1, void
        assert torch.equal(batch.targets, visible)
        assert batch.targets.dtype == torch.int64
        moved += int((batch.targets != labels[batch.index]).any())
    assert moved


def test_masks_move_with_resized_crops() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(5, (16, 4, 4), generator=generator).repeat_interleave(8, 1).repeat_interleave(8, 2)
    images = (40 * labels + 40).to(torch.uint8)[..., None].expand(-1, -1, -1, 3).contiguous()
    data = mask_data(labels, images, views=RandomViews(RandomResizedCrop(scale=(0.3, 0.8))))
    for batch in Batches(data.train, batch_size=16, views=data.views).epoch(0):
        values = batch.inputs[:, 0] * 255 - 40
        exact = (values / 40 - (values / 40).round()).abs() < 0.02  # not between two blocks
        assert exact.float().mean() > 0.5
        agreeing = (values / 40).round().long() == batch.targets
        assert agreeing[exact].float().mean() > 0.97  # an interpolated value may be that of a third class
    assert np.array_equal(batch.targets.unique(), np.arange(5))
