"""Settings of short calls of ``distill`` and ``train``, and what tests compute of their students."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.data import Data
from tutelage.models.tapped import Tapped

Net = Callable[..., Tapped]
SHORT: dict[str, Any] = {"epochs": 2, "batch_size": 16, "lr": 0.1, "device": "cpu"}


def pixels(data: Data) -> Tensor:
    assert isinstance(data.test.inputs, Tensor)
    return data.test.inputs.permute(0, 3, 1, 2) / 255


def share_correct(model: nn.Module, data: Data) -> float:
    with torch.no_grad():
        return float((model.eval()(pixels(data)).argmax(1) == data.test.labels).float().mean())
