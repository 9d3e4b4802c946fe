"""Image files in folders of classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def random_pixels(seed: int, shape: tuple[int, ...] = (16, 16, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_image(file: Path, pixels: np.ndarray, **options: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file, **options)
    return file


def flat(folder: Path, *sizes: int) -> Path:
    for label, size in enumerate(sizes):
        for number in range(size):
            write_image(folder / f"class {label}" / f"{number:03}.png", random_pixels(100 * label + number, (8, 8, 3)))
    return folder
