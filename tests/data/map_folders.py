"""Folders of images with fixations and maps, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def maps_folder(root: Path, **sizes: int) -> Path:
    """Write images of 24 x 32 pixels with a bright place: by turns with fixations, with a map, without labels."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:24, :32]
    for split, size in sizes.items():
        part = root / split
        for folder in ("images", "fixations", "maps"):
            (part / folder).mkdir(parents=True, exist_ok=True)
        for number in range(size):
            column, row = generator.uniform((5, 5), (27, 19))
            density = np.exp(-((x - column) ** 2 + (y - row) ** 2) / 18)
            pixels = generator.integers(60, 120, (24, 32, 3)) + 120 * density[..., None]
            Image.fromarray(pixels.astype(np.uint8)).save(part / "images" / f"{number}.png")
            if number % 2 == 0:
                points = generator.normal((column, row), 1.5, (12, 2)).clip(0, 23)
                lines = "".join(f"{point[0]:.1f},{point[1]:.1f}\n" for point in points)
                (part / "fixations" / f"{number}.csv").write_text(f"x,y\n{lines}")
            elif number % 3 or split == "test":
                Image.fromarray((255 * density).astype(np.uint8)).save(part / "maps" / f"{number}.png")
    return root
