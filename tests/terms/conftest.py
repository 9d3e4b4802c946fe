"""A batch with these targets."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tutelage.data.batch import Batch


@pytest.fixture
def batch_of() -> Callable[[Tensor], Batch]:
    """``batch_of(targets)``: what a term may read is in it, and black images."""

    def make(targets: Tensor) -> Batch:
        index = torch.arange(len(targets))
        return Batch(torch.zeros(len(targets), 1, 2, 2), targets, index, None)

    return make
