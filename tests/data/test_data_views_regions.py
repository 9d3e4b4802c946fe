"""Labels that are places in the image move with its views."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from tutelage.data import Batches, CropsAndFlips, NoAugmentation, Pixels, RandomErasing, RandomResizedCrop, Split
from tutelage.data.targets import Targets
from tutelage.data.views import RandomViews, Views
from tutelage.data.views.regions import cut_planes, moved_boxes, moved_points

HEIGHT, WIDTH = 12, 20
SIZE = (HEIGHT, WIDTH)
GENERATOR = torch.Generator().manual_seed(5)
IMAGES = torch.randint(1, 256, (40, HEIGHT, WIDTH, 1), generator=GENERATOR).to(torch.uint8)
INDEX = torch.arange(40)
VIEWS = [NoAugmentation(), CropsAndFlips(pad=3, flip=True), CropsAndFlips(pad=2, flip=True, limit=7)]


def planes_of(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2).float()


def numbers_of(views: Views) -> Tensor:
    return torch.randint(views.count, (40,), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("views", VIEWS, ids=str)
@pytest.mark.parametrize("nearest", [True, False])
def test_planes_follow_padded_crops_and_flips_exactly(views: Views, nearest: bool) -> None:
    view = numbers_of(views)
    region = views.region(SIZE, view, INDEX)
    cut = cut_planes(planes_of(IMAGES), region, SIZE, nearest=nearest, fill=0.0)
    torch.testing.assert_close(cut, planes_of(views(IMAGES, view, INDEX)), atol=2e-3, rtol=0)


@pytest.mark.parametrize("steps", [(), (RandomErasing(probability=0.0),)])
def test_planes_follow_random_resized_crops(steps: tuple[Any, ...]) -> None:
    smooth = torch.linspace(20, 200, WIDTH)[None, None, :, None] + torch.linspace(0, 50, HEIGHT)[None, :, None, None]
    images = smooth.expand(40, -1, -1, -1).round().to(torch.uint8)
    views = RandomViews(RandomResizedCrop(scale=(0.2, 0.9)), steps)
    view = numbers_of(views)
    view[:5] = 0
    region = views.region(SIZE, view, INDEX)
    assert region[:5].tolist() == [[0, 0, HEIGHT, WIDTH, 0]] * 5
    cut = cut_planes(planes_of(images), region, SIZE, nearest=False, fill=-1.0)
    difference = (cut - planes_of(views(images, view, INDEX)))[:, :, 1:-1, 1:-1].abs()
    assert float(difference.max()) <= 1.0  # images are rounded, and their outermost pixels do not read beyond the box
    assert bool((cut >= 0).all())  # crops lie inside of the image


def test_pixels_outside_of_the_image_have_the_fill_value() -> None:
    views = CropsAndFlips(pad=3)
    region = views.region(SIZE, torch.zeros(1, dtype=torch.int64), INDEX[:1])
    assert region.tolist() == [[-3, -3, HEIGHT, WIDTH, 0]]
    cut = cut_planes(torch.ones(1, 2, HEIGHT, WIDTH), region, SIZE, nearest=True, fill=-1.0)
    assert bool((cut[:, :, :3] == -1).all() and (cut[:, :, :, :3] == -1).all() and (cut[:, :, 3:, 3:] == 1).all())


def test_planes_of_another_resolution_cover_the_same_image() -> None:
    coarse = torch.rand(40, 1, HEIGHT // 2, WIDTH // 2, generator=GENERATOR)
    fine = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)
    views = CropsAndFlips(pad=2, flip=True)
    even = [
        view for view in range(views.count) if not (views.region(SIZE, torch.tensor([view]), INDEX)[0, :2] % 2).any()
    ]
    view = torch.tensor(even)[torch.randint(len(even), (40,), generator=GENERATOR)]
    region = views.region(SIZE, view, INDEX)
    cut = cut_planes(coarse, region, SIZE, nearest=True, fill=0.0)
    expected = cut_planes(fine, region, SIZE, nearest=True, fill=0.0)
    assert torch.equal(cut.repeat_interleave(2, 2).repeat_interleave(2, 3), expected)


@pytest.mark.parametrize("views", [*VIEWS, RandomViews(RandomResizedCrop(scale=(0.3, 0.9)))], ids=str)
def test_points_and_boxes_follow_a_marked_pixel(views: Views) -> None:
    row, column = 5, 13
    planes = torch.zeros(40, 1, HEIGHT, WIDTH)
    planes[:, 0, row, column] = 1
    region = views.region(SIZE, numbers_of(views), INDEX)
    cut = cut_planes(planes, region, SIZE, nearest=True, fill=0.0)[:, 0]
    box = torch.tensor([float(column), float(row), column + 1.0, row + 1.0]).expand(40, 1, 4)
    boxes = moved_boxes(box, region, SIZE)[:, 0]
    centres = moved_points(torch.tensor([column + 0.5, row + 0.5]).expand(40, 1, 2), region, SIZE)[:, 0]
    torch.testing.assert_close((boxes[:, :2] + boxes[:, 2:]) / 2, centres)
    assert bool((boxes[:, 2:] > boxes[:, :2]).all())
    visible = 0
    for plane, (x1, y1, x2, y2) in zip(cut, boxes.tolist(), strict=True):
        pixels = [(x + 0.5, y + 0.5) for y, x in plane.nonzero().tolist()]
        visible += bool(pixels)
        assert all(x1 <= x <= x2 and y1 <= y <= y2 for x, y in pixels)
        inside = [
            (x + 0.5, y + 0.5)
            for y in range(HEIGHT)
            for x in range(WIDTH)
            if x1 + 1e-4 < x + 0.5 < x2 - 1e-4 and y1 + 1e-4 < y + 0.5 < y2 - 1e-4
        ]
        assert set(inside) <= set(pixels)
    assert visible > 20


@dataclass(frozen=True, slots=True)
class Marks(Targets):
    """A map per image, for this test."""

    task: ClassVar[str] = "marks"
    noun: ClassVar[str] = "marks"
    spatial: ClassVar[bool] = True

    def store(self, labels: object, what: str) -> Tensor:
        assert isinstance(labels, Tensor)
        return labels

    def transformed(self, labels: Tensor, region: Tensor, size: tuple[int, int]) -> Tensor:
        return cut_planes(labels, region, size, nearest=True, fill=0.0)


def test_batches_move_labels_with_the_inputs() -> None:
    split = Split.of(IMAGES, planes_of(IMAGES) / 255, Pixels(), Marks())
    batches = Batches(split, batch_size=8, views=CropsAndFlips(pad=2, flip=True), seed=3)
    for batch in batches.epoch(1):
        torch.testing.assert_close(batch.targets, batch.inputs, atol=1e-5, rtol=0)
