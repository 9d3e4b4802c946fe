"""Archives of images without content."""

from __future__ import annotations

import numpy as np


def save_blank_images(file: str, *, channels: int, classes: int) -> None:
    images, labels = np.zeros((20, 8, 8, channels), np.uint8), np.arange(20) % classes
    np.savez(file, train_images=images, train_labels=labels, test_images=images, test_labels=labels)
