"""Saliency maps as targets and as folders: what is stored, what moves with views, what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tutelage.data import CropsAndFlips, Data, Maps, RandomResizedCrop, RandomViews, open_data
from tutelage.data.formats.fixations import fixation_planes, read_fixations
from tutelage.data.loader import Batches

NAN = float("nan")


def maps(*images: tuple[float, float]) -> Tensor:
    """Labels (N, 2, 2, 3): the density and the count of the first pixel of each image; 0 elsewhere."""
    labels = torch.zeros(len(images), 2, 2, 3)
    for label, values in zip(labels, images, strict=True):
        label[:, 0, 0] = torch.tensor(values)
        for plane, value in zip(label, values, strict=True):
            if math.isnan(value):
                plane.fill_(NAN)
    return labels


# --- targets


def test_densities_alone_are_stored_without_fixations() -> None:
    density = np.array([[[0, 255]], [[255, 255]]], np.uint8) / 255
    stored = Maps().store(density, "my maps")
    assert stored.shape == (2, 2, 1, 2)
    assert stored[:, 0].tolist() == [[[0.0, 1.0]], [[1.0, 1.0]]]
    assert bool(stored[:, 1].isnan().all())
    assert Maps().store(stored, "my maps") is stored


def test_unlabelled_images_are_known_and_counted() -> None:
    labels = Maps().store(maps((1, 2), (NAN, NAN), (0.5, NAN)), "my maps")
    assert Maps().labelled(labels).tolist() == [True, False, True]
    assert Maps().strata(labels).tolist() == [0, -1, 0]
    assert Maps().counts(labels, ["saliency"]) == [2]
    assert Maps().classes(labels).tolist() == [-1, -1, -1]


@pytest.mark.parametrize(
    ("labels", "pieces"),
    [
        (np.zeros((2, 3)), ("shape (2, 3)", "(N, 2, H, W)")),
        (np.zeros((2, 3, 4, 5)), ("shape (2, 3, 4, 5)", "(N, 2, H, W)")),
        (maps((1, 1), (1.5, 1)), ("the density of image 1 is 1.5", "row 0, column 0", "largest value")),
        (maps((-0.5, 1)), ("the density of image 0 is -0.5", "row 0, column 0")),
        (maps((1, 0.5)), ("number of fixations of image 0 is 0.5", "count")),
        (maps((1, 1), (0, 1)), ("density of image 1 is 0 everywhere", "NaN")),
        (maps((1, 1), (NAN, 1)), ("density of image 1 is NaN", "has fixations")),
        (maps((1, 1)).index_fill(3, torch.tensor([2]), NAN), ("the density of image 0 is NaN in some pixels",)),
        (maps((math.inf, 1)), ("inf",)),
    ],
)
def test_invalid_maps_are_refused(labels: Any, pieces: tuple[str, ...], refused: Any) -> None:
    with refused("my maps", *pieces):
        Maps().store(labels, "my maps")


def test_maps_have_one_name_and_the_size_of_the_images(refused: Any) -> None:
    images, labels = np.zeros((2, 2, 3, 3), np.uint8), maps((1, 1), (1, 1))
    with refused("one map for each image", "2 names"):
        Data.from_arrays((images, labels), (images, labels), targets=Maps(), classes=["a", "b"])
    with refused("saliency maps cannot be left out", "NaN"):
        Data.from_arrays((images, None), (images, labels), targets=Maps())


@pytest.mark.parametrize(
    "views",
    [CropsAndFlips(pad=2, flip=True), RandomViews(RandomResizedCrop(scale=(0.3, 1.0)), limit=8)],
    ids=["crops", "resized crops"],
)
def test_density_moves_with_its_image(views: Any) -> None:
    """An image whose grey values are its density stays so in every view, but for rounding and the outermost pixels."""
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(32.0), indexing="ij")
    density = torch.stack([torch.exp(-((y - 5 - 3 * n) ** 2 + (x - 8 - 4 * n) ** 2) / 30) for n in range(4)])
    density = density / density.amax((1, 2), keepdim=True)
    pixels = (density * 255).round().to(torch.uint8)[..., None].expand(-1, -1, -1, 3)
    labels = torch.stack([density, torch.zeros_like(density)], 1)
    labels[:, 1, 12, 16] = 1
    labels[3] = NAN
    data = Data.from_arrays((pixels, labels), (pixels, labels), targets=Maps(), views=views)
    moved = False
    for epoch in range(3):
        batch = next(Batches(data.train, batch_size=4, views=views, seed=epoch).epoch(0))
        known = Maps().labelled(batch.targets)
        assert known.tolist() == (batch.index != 3).tolist()
        grey = batch.inputs[known].mean(1)
        assert float((grey - batch.targets[known, 0]).abs()[:, 1:-1, 1:-1].max()) < 0.02
        moved |= not torch.equal(batch.targets[known, 0], density[batch.index[known]])
        counts = batch.targets[known, 1]
        assert bool(((counts == 0) | (counts == 1)).all())
    assert moved


def test_fixations_without_a_density_of_their_own_stay_unknown_in_views() -> None:
    labels = maps((1, NAN), (NAN, NAN), (1, 1))
    region = torch.tensor([[0, 0, 2, 3, 1]] * 3)
    moved = Maps().transformed(labels, region, (2, 3))
    assert moved[:, :, 0, 0].isnan().tolist() == [[False, True], [True, True], [False, False]]
    assert moved[2, 1].tolist() == [[0, 0, 1], [0, 0, 0]]


# --- fixations


def test_density_is_a_sum_of_gaussians_and_counts_are_those_of_pixels() -> None:
    points = torch.tensor([[2.5, 1.5], [2.6, 1.4], [6.2, 3.9], [9.0, 1.0]])
    density, counts = fixation_planes(points, (5, 8), 1.5)
    expected = torch.zeros(5, 8, dtype=torch.float64)
    for row in range(5):
        for column in range(8):
            for x, y in points.double().tolist():
                squared = (column + 0.5 - x) ** 2 + (row + 0.5 - y) ** 2
                expected[row, column] += math.exp(-squared / (2 * 1.5**2))
    torch.testing.assert_close(density, (expected / expected.max()).float())
    assert counts.sum() == 3
    assert (counts[1, 2], counts[3, 6]) == (2, 1)
    assert bool(fixation_planes(points[3:], (5, 8), 1.5).isnan().all())


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", ("begins with nothing", "x,y")),
        ("3,4\n", ("begins with", "3,4", "x,y")),
        ("x,y\n", ("no fixation",)),
        ("x,y\n1,2\n\n1,b\n", ("line 4", "'b'", "pixels")),
        ("x,y\n1\n", ("line 2", "''")),
        ("x,y\n1,nan\n", ("line 2", "'nan'")),
    ],
)
def test_files_without_points_are_refused(text: str, pieces: tuple[str, ...], tmp_path: Path, refused: Any) -> None:
    file = tmp_path / "points.csv"
    file.write_text(text)
    with refused("points.csv", *pieces):
        read_fixations(file)


def test_columns_are_found_by_name(tmp_path: Path) -> None:
    file = tmp_path / "points.csv"
    file.write_text("\ufeffonset, X ,duration,Y\n0.1,3,0.2,4.5\n\n", encoding="utf-8")
    assert read_fixations(file).tolist() == [[3, 4.5]]


# --- folders

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """``write("train/images/a.png", size)`` writes a grey gradient; with text, that text."""

    def make(name: str, content: Any = (12, 16), value: int | None = None) -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            file.write_text(content)
            return file
        height, width = content
        if value is None:
            pixels = np.linspace(0, 255, height * width).reshape(height, width).astype(np.uint8)
        else:
            pixels = np.full((height, width), value, np.uint8)
        Image.fromarray(pixels).convert("RGB" if "images" in name else "L").save(file)
        return file

    return make


@pytest.fixture
def folder(tmp_path: Path, write: Write) -> Path:
    """Three training images, with fixations, with a map, with neither; and a test image with both."""
    for name in ("train/images/a.png", "train/images/b.jpg", "train/images/c.png", "test/images/d.png"):
        write(name)
    write("train/fixations/a.csv", "x,y\n4,6\n4,6\n-1,3\n")
    write("train/maps/b.png", (6, 8))
    write("test/maps/d.png")
    write("test/fixations/d.csv", "x,y\n15.9,0\n")
    return tmp_path


@pytest.mark.filterwarnings("ignore:.*outside of their images")
def test_folder_of_maps_and_fixations(folder: Path) -> None:
    data = open_data(f"maps:{folder}")
    assert (len(data.train), len(data.test), data.targets) == (3, 1, Maps())
    assert data.input_shape == (3, 12, 16)
    assert data.views == CropsAndFlips(pad=0, flip=True)
    assert data.targets.labelled(data.train.labels).tolist() == [True, True, False]
    labels = data.train.labels
    assert labels[0, 1].sum() == labels[0, 1, 6, 4] == 2
    assert labels[0, 0].argmax() in (5 * 16 + 3, 5 * 16 + 4, 6 * 16 + 3, 6 * 16 + 4)
    assert float(labels[1, 0].max()) == 1
    assert bool(labels[1, 1].isnan().all())
    assert labels[1, 0, -1, -1] == 1  # the gradient is brightest there
    assert data.test.labels[0, 1, 0, 15] == 1
    assert data.summary()["counts"] == {"train": [2], "test": [1]}
    assert data.files[0].endswith("a.png")
    assert data.test_files[0].endswith("d.png")


def test_points_outside_are_counted_in_a_warning(folder: Path) -> None:
    with pytest.warns(UserWarning, match="1 fixations lie outside of their images and are left out, first in .*a.csv"):
        open_data(f"maps:{folder}")


@pytest.mark.filterwarnings("ignore:.*outside of their images")
def test_width_of_the_gaussian_is_a_degree(folder: Path, write: Write) -> None:
    def width() -> float:
        density = open_data(f"maps:{folder}").train.labels[0, 0].double()
        row = density[5]
        return float(-2 * math.log(row[8] / row[4]))  # (4.5 / sigma)^2 - (0.5 / sigma)^2 for the point at x = 4

    assert width() == pytest.approx((4.5**2 - 0.5**2) / (16 / 30) ** 2, rel=1e-3)
    write("pixels_per_degree.txt", "3\n")
    assert width() == pytest.approx((4.5**2 - 0.5**2) / 3**2, rel=1e-3)


def test_images_of_several_sizes_are_scaled_with_their_labels(tmp_path: Path, write: Write) -> None:
    for split in ("train", "test"):
        write(f"{split}/images/a.png", (16, 16))
        write(f"{split}/fixations/a.csv", "x,y\n10,2\n")
        write(f"{split}/images/b.png", (32, 64))
        write(f"{split}/fixations/b.csv", "x,y\n36,4\n")
    data = open_data(f"maps:{tmp_path}", image_size=8)
    counts = data.train.labels[:, 1]
    assert data.input_shape == (3, 8, 8)
    assert counts[0, 1, 5] == 1  # half the size
    assert counts[1, 1, 5] == 1  # a quarter of the size, and 4 columns cut off on the left
    assert counts.sum() == 2


def test_folder_without_splits_is_divided(tmp_path: Path, write: Write) -> None:
    for number in range(10):
        write(f"images/{number}.png")
        if number != 5:
            write(f"maps/{number}.png")
    data = open_data(f"maps:{tmp_path}", test=0.3)
    assert (len(data.train), len(data.test)) == (7, 3)
    assert bool(data.targets.labelled(data.test.labels).all())


@pytest.mark.filterwarnings("ignore:.*outside of their images")
@pytest.mark.parametrize(
    ("name", "content", "pieces"),
    [
        ("train/maps/z.png", (6, 8), ("z.png has no image of its name",)),
        ("train/fixations/a.txt", "x,y\n", ("a.txt is no .csv file",)),
        ("train/images/a.jpg", (12, 16), ("a.jpg and a.png", "rename one")),
        ("train/maps/b.bmp", (6, 8), ("belong to one image",)),
        ("train/maps/b.png", (8, 6), ("b.png has 6 x 8 pixels and its image 16 x 12", "ratio")),
        ("train/fixations/a.csv", "x,y\n200,3\n", ("no fixation lies in its image of 16 x 12", "first x 200, y 3")),
        ("pixels_per_degree.txt", "many", ("pixels_per_degree.txt has 'many'", "such as 30")),
        ("train/images/e.png", (8, 8), ("2 sizes", "--image-size")),
        ("train/maps/b.png", "no picture", ("b.png cannot be read",)),
    ],
)
def test_wrong_files_are_named(
    name: str, content: Any, pieces: Sequence[str], folder: Path, write: Write, refused: Any
) -> None:
    write(name, content)
    with refused(*pieces):
        open_data(f"maps:{folder}")


def test_black_maps_and_missing_folders_are_refused(folder: Path, write: Write, refused: Any) -> None:
    write("train/maps/b.png", value=0)
    with refused("b.png is black"):
        open_data(f"maps:{folder}")
    with refused("has a test split already", "0.5"):
        open_data(f"maps:{folder}", test=0.5)
    with refused("skip_bad"):
        open_data(f"maps:{folder}", skip_bad=True)
    with refused("has no folder images", "images/"):
        open_data(f"maps:{folder / 'train' / 'maps'}")
    (folder / "test").rename(folder / "tset")
    with refused("has no folder test"):
        open_data(f"maps:{folder}")
