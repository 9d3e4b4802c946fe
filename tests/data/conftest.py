"""Fixtures of the data tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.archives import ARRAYS
from tests.data.image_files import random_pixels, write_image
from tutelage.data import CropsAndFlips, Data, Split


@pytest.fixture
def make_data() -> Callable[..., Data]:
    """A factory of random grey 8x8 images with labels 0, 1, ..., classes - 1, 0, ..."""

    def make(train: int = 60, test: int = 20, classes: int = 4, validation: int = 0) -> Data:
        generator = torch.Generator().manual_seed(1)

        def part(size: int) -> Split:
            images = torch.randint(256, (size, 8, 8, 1), generator=generator, dtype=torch.uint8)
            return Split.of(images, torch.arange(size) % classes)

        return Data(
            "made",
            tuple(f"c{c}" for c in range(classes)),
            part(train),
            part(test),
            part(validation) if validation else None,
            CropsAndFlips(pad=1),
        )

    return make


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder of two classes with four training and two test images each, 16x16 RGB."""
    for part, count in (("train", 4), ("test", 2)):
        for number, name in enumerate(("cat", "dog")):
            for i in range(count):
                write_image(tmp_path / part / name / f"{i}.png", random_pixels(100 * len(part) + 10 * number + i))
    return tmp_path


@pytest.fixture
def save_archive(tmp_path):
    def save(**changes: object) -> str:
        arrays = {key: value for key, value in {**ARRAYS, **changes}.items() if value is not None}
        np.savez(tmp_path / "d.npz", **arrays)
        return f"npz:{tmp_path / 'd.npz'}"

    return save
