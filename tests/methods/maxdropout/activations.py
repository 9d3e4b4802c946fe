"""Random activations."""

from __future__ import annotations

import torch
from torch import Tensor


def activations(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).relu()
