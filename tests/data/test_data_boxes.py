"""Boxes as targets: their checks, and how they move with views."""

from __future__ import annotations

import pytest
import torch

from tests.tasks.scenes import CLASSES, scene_data, scenes
from tutelage.data import Batches, Boxes, CropsAndFlips, Data, Pixels, RandomResizedCrop, Split
from tutelage.data.targets.boxes import CROWD, DIFFICULT
from tutelage.data.views import RandomViews

TARGETS = Boxes()


def rows(*boxes: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor([boxes], dtype=torch.float32)


def test_five_columns_become_six_and_other_rows_zeros() -> None:
    stored = TARGETS.store(rows((1, 2, 3, 4, 0), (7, 7, 7, 7, -1)), "boxes")
    assert stored.tolist() == [[[1, 2, 3, 4, 0, 0], [0, 0, 0, 0, -1, 0]]]
    assert TARGETS.store(stored, "boxes") is stored
    assert TARGETS.num_classes(stored) == 1


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ((3, 2, 3, 4, 0), ("box 1 of image 0 is (3, 2, 3, 4, 0, 0)", "x2 must be above x1")),
        ((1, 2, 3, 4, 0.5), ("0.5", "classes are 0 or more")),
        ((1, 2, 3, 4, -2), ("-2", "classes are 0 or more")),
        ((1, 2, 3, float("nan"), 0), ("nan", "[0, 1, 3]")),
    ],
)
def test_bad_boxes_are_refused_with_image_box_and_values(
    box: tuple[float, ...], words: tuple[str, ...], refused
) -> None:
    with refused("the labels", *words):
        TARGETS.store(rows((1, 2, 3, 4, 0), box), "the labels")


def test_bad_kinds_columns_and_classes_are_refused(refused) -> None:
    with refused("kinds are 0, 1 or 2", "3"):
        TARGETS.store(rows((1, 2, 3, 4, 0, 3)), "labels")
    with refused("rows of 4 numbers"):
        TARGETS.store(rows((1, 2, 3, 4)), "labels")
    images, boxes = scenes(8, 0)
    boxes[3, 1] = torch.tensor([1, 1, 9, 9, 2])
    with refused("box 1 of image 3", "there are 2 classes"):
        Data.from_arrays((images, boxes), (images, boxes), classes=CLASSES, targets=TARGETS)
    with refused("boxes cannot be left out"):
        Data.from_arrays((images, None), (images, boxes), classes=CLASSES, targets=TARGETS)


def test_counts_and_strata_are_of_objects_that_count() -> None:
    stored = TARGETS.store(
        torch.tensor(
            [
                [[0, 0, 2, 2, 0, 0], [0, 0, 2, 2, 1, 0], [0, 0, 2, 2, 1, 0]],
                [[0, 0, 2, 2, 1, DIFFICULT], [0, 0, 2, 2, 0, CROWD], [0, 0, 0, 0, -1, 0]],
            ]
        ).float(),
        "labels",
    )
    assert TARGETS.counts(stored, CLASSES) == [1, 2]
    assert TARGETS.strata(stored).tolist() == [1, 0]
    assert TARGETS.labelled(stored).tolist() == [True, True]


def test_boxes_are_cut_at_the_rim_and_dropped_below_a_quarter() -> None:
    boxes = TARGETS.store(rows((2, 2, 6, 6, 0), (0, 8, 4, 12, 1), (0, 0, 3, 3, 1)), "labels")
    region = torch.tensor([[3, 1, 12, 16, 0]])  # 3 rows and 1 column are cut off, as many are added below
    moved = TARGETS.transformed(boxes, region, (12, 16))[0]
    assert moved.tolist() == [[1, 0, 5, 3, 0, 0], [0, 5, 3, 9, 1, 0], [0, 0, 0, 0, -1, 0]]
    mirrored = TARGETS.transformed(boxes, torch.tensor([[0, 0, 12, 16, 1]]), (12, 16))[0]
    assert mirrored[0].tolist() == [10, 2, 14, 6, 0, 0]
    sliver = TARGETS.transformed(boxes, torch.tensor([[5, 0, 12, 16, 0]]), (12, 16))[0]
    assert sliver[0].tolist() == [2, 0, 6, 1, 0, 0]  # exactly a quarter is left
    assert TARGETS.transformed(boxes, torch.tensor([[5, 3, 12, 16, 0]]), (12, 16))[0, 0, 4] == -1


@pytest.mark.parametrize("views", [CropsAndFlips(pad=6, flip=True), RandomViews(RandomResizedCrop(scale=(0.4, 0.9)))])
def test_boxes_stay_on_their_objects(views) -> None:
    split = Split.of(*scenes(48, 0, most=1), modality=Pixels(), targets=TARGETS)
    batches = Batches(split, batch_size=12, views=views, seed=1)
    seen = 0
    for batch in batches.epoch(0):
        for image, boxes in zip(batch.inputs, batch.targets, strict=True):
            for x1, y1, x2, y2, number, _ in boxes[boxes[:, 4] == 0].tolist():
                inside = image[0, round(y1) + 2 : round(y2) - 2, round(x1) + 2 : round(x2) - 2]
                if inside.numel() > 20:
                    seen += 1
                    bright = float(((inside - 235 / 255).abs() < 0.05).float().mean())
                    assert bright > 0.95, number
    assert seen > 8


def test_held_out_split_has_its_share_of_empty_images() -> None:
    data = scene_data(100, 2)
    data = Data.from_arrays(
        (data.train.inputs, data.train.labels), (data.test.inputs, data.test.labels), targets=TARGETS, modality=Pixels()
    ).hold_out(0.3)
    assert data.validation is not None
    shares = [float(TARGETS.strata(split.labels).float().mean()) for split in (data.train, data.validation)]
    assert shares[0] == pytest.approx(shares[1], abs=0.03)
