"""Batches of images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tutelage.data import Batch
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped

Net = Callable[..., Tapped]
NOTHING = Outputs(None)


def batch_of(images: Tensor, targets: Tensor) -> Batch:
    return Batch(images, targets, torch.arange(len(images)), key=None)


def features(count: int, width: int = 6, seed: int = 0) -> Outputs:
    values = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return Outputs(None, {"embedding": values.requires_grad_()})
