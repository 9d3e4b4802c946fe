"""Samples of several experiments."""

from __future__ import annotations

import torch

from tutelage.data import Split, open_data


def all_digits() -> Split:
    """The 1,797 handwritten digits of scikit-learn, training and test split together."""
    data = open_data("digits")
    parts = (data.train, data.test)
    inputs = torch.cat([torch.as_tensor(part.inputs) for part in parts])
    return Split.of(inputs, torch.cat([part.labels for part in parts]))
