"""Random resized crops, centre crops and random erasing: the distribution of boxes, and the pixels of a box."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from tutelage.data import RandomErasing, RandomResizedCrop
from tutelage.data.views.boxes import centre_boxes, cut, cut_batch
from tutelage.data.views.draws import Draws

COUNT = 20_000
DRAWN = torch.arange(COUNT)


def boxes_of(crop: RandomResizedCrop, height: int, width: int) -> torch.Tensor:
    return crop.boxes(torch.tensor([[height, width]]).expand(COUNT, 2), Draws.of(DRAWN, DRAWN * 0, 0))


def smooth(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (5, 6, channels), dtype=np.uint8)
    planes = [
        np.asarray(Image.fromarray(noise[..., c]).resize((width, height), Image.Resampling.BICUBIC))
        for c in range(channels)
    ]
    return np.stack(planes, 2)


@pytest.mark.parametrize("size", [(300, 400), (400, 300), (256, 256), (100, 1000)])
def test_boxes_lie_in_the_image_and_in_the_range_of_ratios(size):
    top, left, height, width, mirrored = boxes_of(RandomResizedCrop(), *size).unbind(1)
    assert min(top.min(), left.min(), height.min() - 1, width.min() - 1) >= 0
    assert (top + height).max() <= size[0]
    assert (left + width).max() <= size[1]
    ratio = width / height
    assert ratio.min() >= 3 / 4 * 0.97  # sides are whole pixels
    assert ratio.max() <= 4 / 3 * 1.03
    assert abs(mirrored.double().mean() - 0.5) < 0.02


def test_distribution_of_boxes_that_always_fit():
    """Area uniform, log-ratio uniform, position uniform: with areas up to 1/2, every box fits a square image."""
    top, left, height, width, _ = boxes_of(RandomResizedCrop(scale=(0.1, 0.5)), 1000, 1000).double().unbind(1)
    area, log_ratio = height * width / 1e6, (width / height).log()
    assert abs(area.mean() - 0.3) < 0.004
    assert abs(area.std() - 0.4 / math.sqrt(12)) < 0.003
    assert abs(log_ratio.mean()) < 0.006
    assert abs(log_ratio.std() - 2 * math.log(4 / 3) / math.sqrt(12)) < 0.004
    shares = [start / (1000 - extent) for start, extent in ((top, height), (left, width))]
    for share in shares:
        assert abs(share.mean() - 0.5) < 0.01
        assert abs(share.std() - 1 / math.sqrt(12)) < 0.006
    correlations = torch.corrcoef(torch.stack([*shares, area, log_ratio])) - torch.eye(4)
    assert correlations.abs().max() < 0.03


def test_rejected_boxes_are_drawn_again_as_in_a_plain_loop():
    """Means of boxes in a wide image, against a loop that draws until a box fits, with Python's generator."""
    rng = np.random.default_rng(1)
    height, width = 200, 500
    expected = []
    for _ in range(COUNT):
        box = None
        for _ in range(10):
            area = height * width * rng.uniform(0.08, 1)
            aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
            down, across = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
            if 0 < down <= height and 0 < across <= width:
                box = (rng.integers(0, height - down + 1), rng.integers(0, width - across + 1), down, across)
                break
        if box is None:
            across = round(height * 4 / 3)
            box = (0, (width - across) // 2, height, across)
        expected.append(box)
    actual = boxes_of(RandomResizedCrop(), height, width)[:, :4].double().numpy()
    reference = np.array(expected, np.float64)
    error = reference.std(0) * math.sqrt(2 / COUNT)
    assert (abs(actual.mean(0) - reference.mean(0)) < 4.5 * error).all()
    assert (abs(actual.std(0) / reference.std(0) - 1) < 0.03).all()


@pytest.mark.parametrize(("size", "expected"), [((10, 1000), (0, 493, 10, 13)), ((1000, 10), (493, 0, 13, 10))])
def test_long_images_get_the_largest_centre_box(size, expected):
    boxes = boxes_of(RandomResizedCrop(scale=(0.9, 1.0)), *size)
    assert (boxes[:, :4] == torch.tensor(expected)).all()


def test_centre_boxes():
    sizes = torch.tensor([[256, 341], [341, 256], [375, 500], [1, 1]])
    expected = [[16, 58, 224, 224, 0], [58, 16, 224, 224, 0], [23, 86, 328, 328, 0], [0, 0, 1, 1, 0]]
    assert centre_boxes(sizes).tolist() == expected
    assert centre_boxes(sizes[:1], 1.0).tolist() == [[0, 42, 256, 256, 0]]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("box", [(5, 7, 40, 50, 0), (0, 0, 60, 80, 1), (10, 20, 9, 7, 1), (3, 4, 24, 32, 0)])
def test_cut_is_pillows_antialiased_bilinear_resize(box, channels):
    image = smooth(60, 80, channels)
    top, left, height, width, mirrored = box
    part = image[top : top + height, left : left + width]
    planes = [
        np.asarray(Image.fromarray(part[..., c]).resize((32, 24), Image.Resampling.BILINEAR)) for c in range(channels)
    ]
    expected = np.stack(planes, 2)[:, :: -1 if mirrored else 1].astype(int)
    actual = cut(torch.from_numpy(image), list(box), (24, 32)).numpy().astype(int)
    assert abs(actual - expected).max() <= 1


def test_cut_batch_equals_cut_of_each_image():
    images = torch.from_numpy(np.stack([smooth(24, 32, seed=seed) for seed in range(64)]))
    boxes = RandomResizedCrop().boxes(torch.tensor([[24, 32]]).expand(64, 2), Draws.of(DRAWN[:64], DRAWN[:64], 0))
    expected = torch.stack([cut(image, box, (24, 32)) for image, box in zip(images, boxes.tolist(), strict=True)])
    actual = cut_batch(images, boxes)
    assert (actual.int() - expected.int()).abs().max() <= 1
    assert actual.is_contiguous()


def test_whole_boxes_leave_images_unchanged_and_mirror_them():
    images = torch.randint(256, (2, 7, 9, 3), dtype=torch.uint8)
    boxes = torch.tensor([[0, 0, 7, 9, 0], [0, 0, 7, 9, 1]])
    assert torch.equal(cut_batch(images, boxes), torch.stack([images[0], images[1].flip(1)]))


def test_erasing_fills_one_box_of_the_chosen_images_with_the_mean():
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4000, 16, 20, 3), dtype=np.uint8))
    erased = RandomErasing(probability=0.25)(images, Draws.of(DRAWN[:4000], DRAWN[:4000] * 0, 1))
    mean = images.double().mean((1, 2)).round().to(torch.uint8)
    changed = (erased != images).any(3)
    touched = changed.flatten(1).any(1)
    assert abs(touched.double().mean() - 0.25) < 0.03
    areas = []
    for number in touched.nonzero().flatten().tolist()[:200]:
        rows, columns = changed[number].any(1).nonzero().flatten(), changed[number].any(0).nonzero().flatten()
        box = erased[number, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert (box == mean[number]).all()
        areas.append(box.shape[0] * box.shape[1] / 320)
    assert min(areas) > 0.01
    assert max(areas) < 0.4
    assert abs(np.mean(areas) - (0.02 + 1 / 3) / 2) < 0.03


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RandomResizedCrop(scale=(0.5, 0.2)), ("scale", "(0.5, 0.2)")),
        (lambda: RandomResizedCrop(scale=(0.0, 1.0)), ("scale", "(0.0, 1.0)")),
        (lambda: RandomResizedCrop(scale=(0.5, 1.2)), ("scale", "(0.5, 1.2)", "up to 1")),
        (lambda: RandomResizedCrop(ratio=(-1.0, 1.0)), ("ratio", "(-1.0, 1.0)")),
        (lambda: RandomResizedCrop(flip=1.5), ("flip", "1.5")),
        (lambda: RandomErasing(probability=math.nan), ("probability", "nan")),
        (lambda: RandomErasing(scale=(0.1, 2)), ("scale", "2")),
    ],
)
def test_wrong_parameters_are_refused(make, words, refused):
    with refused(*words):
        make()
