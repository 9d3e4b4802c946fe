"""Folders of images and masks: what is read, and how images and masks stay together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.image_files import random_pixels, write_image
from tests.data.mask_folders import masks_folder, striped, write_mask
from tutelage.data import open_data
from tutelage.data.targets import Masks
from tutelage.errors import TutelageWarning

STRIPES = np.where(striped() == 255, -1, striped())


def test_grey_and_palette_masks_are_class_numbers(tmp_path: Path) -> None:
    data = open_data(f"masks:{masks_folder(tmp_path)}")
    assert (len(data.train), len(data.test), data.classes) == (4, 2, ("0", "1", "2"))
    assert data.targets == Masks()
    assert data.train.labels.dtype == torch.int16
    for mask in (*data.train.labels, *data.test.labels):
        assert np.array_equal(mask, STRIPES)
    assert data.summary()["counts"]["train"] == [int(4 * (c == STRIPES).sum()) for c in range(3)]
    assert [Path(name).name for name in data.test_files] == ["0.png", "1.png"]


def test_two_levels_are_the_classes_0_and_1(tmp_path: Path) -> None:
    root = masks_folder(tmp_path)
    for file in root.glob("*/masks/*.png"):
        Image.fromarray(striped() == 1).save(file)  # mode 1
    data = open_data(f"masks:{root}")
    assert data.classes == ("0", "1")
    assert np.array_equal(data.test.labels[0], striped() == 1)


def test_classes_are_named(tmp_path: Path) -> None:
    root = masks_folder(tmp_path)
    (root / "classes.txt").write_text("sky\ncat\ndog\nbird\n")
    data = open_data(f"masks:{root}")
    assert data.classes == ("sky", "cat", "dog", "bird")
    assert data.summary()["counts"]["test"][3] == 0


def test_without_splits_a_share_becomes_the_test_split(tmp_path: Path) -> None:
    masks_folder(tmp_path, train=10)
    data = open_data(f"masks:{tmp_path / 'train'}", test=0.3)
    assert (len(data.train), len(data.test)) == (7, 3)


def test_unlabelled_images_join_the_training_split(tmp_path: Path) -> None:
    root = masks_folder(tmp_path, train=4, val=2, test=2)
    for number in range(3):
        write_image(root / "unlabelled" / f"{number}.jpg", random_pixels(number))
    data = open_data(f"masks:{root}")
    assert data.targets.labelled(data.train.labels).tolist() == [True] * 4 + [False] * 3
    assert len(data.splits["validation"]) == 2


@pytest.mark.parametrize("size", [(40, 24), (24, 40), (17, 17)])
def test_images_and_masks_are_scaled_and_cut_alike(size: tuple[int, int], tmp_path: Path) -> None:
    """An image whose pixels are its class numbers times 100 keeps showing its mask."""
    blocks = np.kron(np.random.default_rng(3).integers(0, 3, (5, 5)), np.ones((8, 8), np.int64))[: size[0], : size[1]]
    for split in ("train", "test"):
        write_image(tmp_path / split / "images" / "a.png", (100 * blocks).astype(np.uint8))
        write_mask(tmp_path / split / "masks" / "a.png", blocks)
    data = open_data(f"masks:{tmp_path}", image_size=12)
    assert data.train.labels.shape == (1, 12, 12)
    image = data.train.inputs[torch.tensor([0])][0, :, :, 0].float()
    classes = (image / 100).round()
    assert (classes == data.train.labels[0]).float().mean() > 0.8  # bicubic edges may round the other way
    sure = (image - 100 * data.train.labels[0].float()).abs() < 10
    assert sure.float().mean() > 0.5
    assert set(data.train.labels.unique().tolist()) <= {0, 1, 2}


def test_the_orientation_of_images_is_applied(tmp_path: Path) -> None:
    upright = np.zeros((16, 12), np.uint8)
    upright[:5] = 200  # the top is bright
    exif = Image.Exif()
    exif[274] = 6  # stored turned by 90 degrees
    for split in ("train", "test"):
        write_image(tmp_path / split / "images" / "a.jpg", np.rot90(upright).copy(), exif=exif.tobytes(), quality=100)
        write_mask(tmp_path / split / "masks" / "a.png", upright > 0)
    data = open_data(f"masks:{tmp_path}")
    bright = data.train.inputs[torch.tensor([0])][0, :, :, 0] > 100
    assert torch.equal(bright, data.train.labels[0] == 1)


def test_a_mask_with_an_orientation_of_its_own_is_turned(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 3
    for split in ("train", "test"):
        write_image(tmp_path / split / "images" / "a.png", random_pixels(0))
        mask = tmp_path / split / "masks" / "a.png"
        mask.parent.mkdir(parents=True)
        Image.fromarray(striped().astype(np.uint8)).save(mask, exif=exif.tobytes())
    data = open_data(f"masks:{tmp_path}")
    assert np.array_equal(data.train.labels[0], np.rot90(STRIPES, 2))


def test_bad_images_and_bad_masks_are_left_out_together(tmp_path: Path) -> None:
    root = masks_folder(tmp_path, train=5, test=2)
    (root / "train/images/1.png").write_bytes(b"no image")
    (root / "train/masks/3.png").write_bytes(b"no mask")
    with pytest.warns(TutelageWarning, match="2 images are left out"):
        data = open_data(f"masks:{root}", skip_bad=True)
    assert [Path(name).stem for name in data.files] == ["0", "2", "4"]
    assert len(data.train.labels) == 3
    assert data.record[0]["skipped"] == {"train": 2}


def test_masks_without_images_cause_a_warning(tmp_path: Path) -> None:
    root = masks_folder(tmp_path)
    write_mask(root / "test/masks/more.png", striped())
    with pytest.warns(TutelageWarning, match="1 masks without an image"):
        open_data(f"masks:{root}")


def _without(file: str) -> Any:
    return lambda root: (root / file).unlink()


def _mask(values: np.ndarray) -> Any:
    return lambda root: Image.fromarray(values).save(root / "train/masks/1.png")


ERRORS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "no mask": (_without("train/masks/1.png"), ("train/images/1.png has no mask", "1.png; add it", "unlabelled")),
    "a JPEG": (
        lambda root: (root / "test/masks/0.png").rename(root / "test/masks/0.jpg"),
        ("has no mask", "0.jpg is no PNG"),
    ),
    "another size": (_mask(np.zeros((16, 12), np.uint8)), ("masks/1.png has 16x12 pixels", "16x16; make them equal")),
    "colours": (_mask(random_pixels(0)), ("colour mode RGB", "grey or palette PNG")),
    "no folder of masks": (
        lambda root: (root / "test/masks").rename(root / "test/labels"),
        ("no folder", "test/masks"),
    ),
    "no test folder": (lambda root: (root / "test").rename(root / "other"), ("no folder test", "train/images")),
    "one stem twice": (
        lambda root: write_image(root / "train/images/1.jpg", random_pixels(1)),
        ("2 images named 1", "rename"),
    ),
    "a class that is not named": (
        lambda root: (root / "classes.txt").write_text("a\nb\n"),
        ("has the class 2", "2 classes, 0 to 1", "void pixels as 255"),
    ),
    "an empty line": (lambda root: (root / "classes.txt").write_text("a\n\nb\n"), ("classes.txt has an empty line",)),
    "no text": (lambda root: (root / "classes.txt").write_bytes(b"\xff\xfe\x00"), ("classes.txt is not UTF-8",)),
    "different sizes": (
        lambda root: (
            write_image(root / "train/images/1.png", random_pixels(1, (8, 8, 3))),
            write_mask(root / "train/masks/1.png", striped((8, 8))),
        ),
        ("the images have 2 sizes", "--image-size"),
    ),
    "a mask that cannot be read": (
        lambda root: (root / "train/masks/0.png").write_bytes(b"no"),
        ("train/masks/0.png cannot be read", "--skip-bad"),
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_unusable_folders_are_refused(name: str, tmp_path: Path, refused: Any) -> None:
    spoil, pieces = ERRORS[name]
    root = masks_folder(tmp_path)
    spoil(root)
    with refused(*pieces):
        open_data(f"masks:{root}")


def test_foreground_as_255_is_refused(tmp_path: Path, refused: Any) -> None:
    root = masks_folder(tmp_path)
    for file in root.glob("*/masks/*.png"):
        write_mask(file, 255 * (striped() == 1))
    with refused("no values but 0 and 255", "255 means void"):
        open_data(f"masks:{root}")


def test_a_mask_of_the_stored_size_of_a_turned_image_is_refused(tmp_path: Path, refused: Any) -> None:
    root = masks_folder(tmp_path)
    exif = Image.Exif()
    exif[274] = 6
    write_image(root / "train/images/0.png", random_pixels(0, (16, 12, 3)), exif=exif.tobytes())
    write_mask(root / "train/masks/0.png", striped((16, 12)))
    with refused("EXIF data turn the image, so turn the mask, too"):
        open_data(f"masks:{root}", image_size=8)
