"""Arrays of a data set in an ``.npz`` archive."""

from __future__ import annotations

import numpy as np

RNG = np.random.default_rng(0)
ARRAYS = {
    "train_images": RNG.integers(0, 256, (8, 16, 16, 3), dtype=np.uint8),
    "train_labels": np.arange(8) % 4,
    "test_images": RNG.integers(0, 256, (4, 16, 16, 3), dtype=np.uint8),
    "test_labels": np.arange(4),
}
