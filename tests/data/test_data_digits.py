"""The digits data set."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits

from tutelage.data import CropsAndFlips, open_data


def test_digits_are_those_of_scikit_learn_scaled_to_bytes_in_fixed_splits():
    data = open_data("digits")
    assert data.classes == tuple("0123456789")
    assert data.views == CropsAndFlips(pad=1, flip=False)
    assert data.image_shape == (1, 8, 8)
    assert (len(data.train), len(data.test)) == (1437, 360)
    pixels, labels = load_digits(return_X_y=True)
    levels = np.array([round(level * 255 / 16) for level in range(17)])
    known = {
        (row.tobytes(), label) for row, label in zip(levels[pixels.astype(int)].astype(np.uint8), labels, strict=True)
    }
    both = [
        (i.numpy().tobytes(), int(c))
        for part in (data.train, data.test)
        for i, c in zip(part.inputs, part.labels, strict=True)
    ]
    assert len(both) == 1797
    assert set(both) == known
    shares = torch.bincount(data.test.labels).numpy() / np.bincount(labels)
    assert (np.abs(shares - 0.2) < 0.005).all()
    assert torch.equal(data.test.inputs, open_data("digits").test.inputs)
