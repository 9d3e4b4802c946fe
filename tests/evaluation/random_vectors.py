"""Random vectors."""

from __future__ import annotations

import torch
from torch import Tensor


def vectors(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
