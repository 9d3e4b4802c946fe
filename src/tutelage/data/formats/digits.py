"""The 1,797 handwritten digits that are part of scikit-learn; no download is needed."""

from __future__ import annotations

import numpy as np
import torch

from tutelage.data.data import Data, Split
from tutelage.data.views import CropsAndFlips


def load() -> Data:
    """Load grey 8x8 digits: 1,437 training and 360 test images in a fixed, stratified split.

    The 17 levels 0..16 become uint8 0..255, rounded.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, classes = load_digits(return_X_y=True)
    images = torch.from_numpy(np.rint(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1))
    labels = torch.from_numpy(classes.astype(np.int64))
    indices = train_test_split(np.arange(len(labels)), test_size=0.2, random_state=0, stratify=classes)
    train, test = (torch.from_numpy(np.sort(split)) for split in indices)
    return Data(
        name="digits",
        classes=tuple("0123456789"),
        train=Split.of(images[train], labels[train]),
        test=Split.of(images[test], labels[test]),
        views=CropsAndFlips(pad=1),
    )
