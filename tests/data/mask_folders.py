"""Folders of images and masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.image_files import random_pixels, write_image


def write_mask(file: Path, values: np.ndarray, *, palette: bool = False) -> Path:
    """Write class numbers as a grey PNG, or as one with a palette that has nothing to do with them."""
    image = Image.fromarray(values.astype(np.uint8))
    if palette:
        image = Image.frombytes("P", image.size, image.tobytes())
        image.putpalette([(7 * level + 50) % 256 for level in range(768)])
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)
    return file


def striped(size: tuple[int, int] = (16, 16), classes: int = 3) -> np.ndarray:
    """Vertical stripes of the classes, and a void row at the top."""
    mask = np.tile(np.arange(size[1]) * classes // size[1], (size[0], 1))
    mask[0] = 255
    return mask


def masks_folder(root: Path, **sizes: int) -> Path:
    """Images of 16x16 pixels with striped masks, so many in each split."""
    for split, count in (sizes or {"train": 4, "test": 2}).items():
        for number in range(count):
            write_image(root / split / "images" / f"{number}.png", random_pixels(100 * len(split) + number))
            write_mask(root / split / "masks" / f"{number}.png", striped(), palette=number % 2 == 1)
    return root
