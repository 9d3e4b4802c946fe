"""Cached teacher outputs of images in files, which are identified without decoding."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.sources.caching import Net, count_passes, fill_cache
from tutelage.data import Data
from tutelage.data.assemble import Reading
from tutelage.data.formats import folder
from tutelage.sources.cache import TeacherCache


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """An image folder: four classes of four training images and a test image, grayscale 8x8, with an old mtime."""
    generator = np.random.default_rng(0)
    for name in "abcd":
        for file in [*(f"train/{name}/{number}.png" for number in range(4)), f"test/{name}/0.png"]:
            path = tmp_path / "image_folder" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
            os.utime(path, (1e9, 1e9))
    return tmp_path / "image_folder"


def load(images: Path, image_size: int | None = None) -> Data:
    return folder.load(images, image_size, reading=Reading(in_memory_bytes=0))


def test_image_files_are_identified_without_decoding(
    image_folder: Path, tiny_model: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, teacher = load(image_folder), tiny_model(1)
    fill_cache(data, teacher, tmp_path / "cache")
    subset = replace(data, train=data.train.subset(torch.tensor([9, 2, 14])))
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", lambda *_: pytest.fail("an image was opened"))
        TeacherCache(tmp_path / "cache", data)
        TeacherCache(tmp_path / "cache", subset)
    count_passes(data, teacher, tmp_path / "cache")
    count_passes(load(image_folder.rename(tmp_path / "moved")), teacher, tmp_path / "cache")


def touch(file: Path) -> None:
    os.utime(file, (1e9, 1e9 + 1))


def replace_file(file: Path) -> None:
    """Replace the file by an image of another size in bytes with the same mtime."""
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(file)
    os.utime(file, (1e9, 1e9))


def rename(file: Path) -> None:
    file.rename(file.with_name("1b.png"))


def remove(file: Path) -> None:
    """Remove the file, which shifts the index of all later images."""
    file.unlink()


@pytest.mark.parametrize(
    ("change", "differ"), [(touch, "1 of 16"), (replace_file, "1 of 16"), (rename, "1 of 16"), (remove, "10 of 15")]
)
def test_changed_files_count_as_other_images(
    change: Callable[[Path], None], differ: str, image_folder: Path, tiny_model: Net, tmp_path: Path, refused: Any
) -> None:
    teacher = tiny_model(1)
    fill_cache(load(image_folder), teacher, tmp_path / "cache")
    change(image_folder / "train" / "b" / "1.png")
    with refused("outputs for other images", differ, "index 5", "another folder"):
        count_passes(load(image_folder), teacher, tmp_path / "cache")


def test_another_image_size_counts_as_other_images(
    image_folder: Path, tiny_model: Net, tmp_path: Path, refused: Any
) -> None:
    teacher = tiny_model(1)
    fill_cache(load(image_folder), teacher, tmp_path / "cache")
    with refused("outputs for other images", "16 of 16"):
        count_passes(
            load(image_folder, image_size=8), teacher, tmp_path / "cache"
        )  # would be cropped if it were not square


def test_missing_image_file_is_reported(image_folder: Path, tmp_path: Path, refused: Any) -> None:
    data, file = load(image_folder), image_folder / "train" / "b" / "1.png"
    file.unlink()
    with refused(file, "cannot be read", "No such file"):
        TeacherCache(tmp_path / "cache", data)


def test_images_without_fingerprints_are_refused(tiny_data: Data, tmp_path: Path, refused: Any) -> None:
    class Rows:
        shape = (48, 8, 8, 1)

        def __getitem__(self, index: Tensor) -> Tensor:
            return tiny_data.train.inputs[index]

        def fingerprint(self, index: int) -> None:
            """Rows of a table have no fingerprint."""

    train = replace(tiny_data.train, inputs=Rows())
    for split in (train, train.subset(torch.arange(5))):
        with refused("tiny", "no files of their own", "without teacher_cache="):
            TeacherCache(tmp_path, replace(tiny_data, train=split))


def test_different_images_with_the_same_index_are_refused(tiny_data: Data, tmp_path: Path, refused: Any) -> None:
    train = replace(tiny_data.train, index=torch.arange(len(tiny_data.train)) % 40)
    with refused("8 training samples of tiny", "first is index 0", "without teacher_cache="):
        TeacherCache(tmp_path, replace(tiny_data, train=train))
    repeated_split = tiny_data.train.subset(torch.tensor([0, 1, 1, 2]))  # the same image twice is not ambiguous
    TeacherCache(tmp_path, replace(tiny_data, train=repeated_split))


def test_overwritten_file_changes_the_fingerprint(tiny_data: Data, tmp_path: Path) -> None:
    for split in ("train", "test"):
        for number in range(6):
            file = tmp_path / "image_folder" / split / f"{number % 2}" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(tiny_data.train.inputs[number, ..., 0].numpy()).save(file)
    data = load(tmp_path / "image_folder")
    before, codes = data.fingerprint, TeacherCache(tmp_path / "cache", data)._codes
    Image.fromarray(tiny_data.train.inputs[9, ..., 0].numpy()).save(tmp_path / "image_folder" / "train" / "0" / "2.png")
    changed_data = load(tmp_path / "image_folder")
    assert changed_data.fingerprint != before
    assert (TeacherCache(tmp_path / "cache", changed_data)._codes != codes).tolist() == [False, True] + [False] * 4
