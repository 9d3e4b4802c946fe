"""The batch of the tests of sources."""

from __future__ import annotations

import pytest
import torch

from tutelage.data.batch import Batch


@pytest.fixture
def batch() -> Batch:
    """Eight grayscale images of 8x8, an input of ``tiny_model``."""
    inputs = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    index = torch.arange(8)
    return Batch(inputs, index % 4, index, None)
