"""Networks of the checks before training."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from tutelage.models.tapped import Tapped

Net = Callable[..., Tapped]


def mlp(classes: int = 4) -> Tapped:
    return Tapped(nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, classes)))
