"""A generator of a user."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CustomGenerator(nn.Module):
    """A user's module, with dropout."""

    latent = 3

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.drop, self.norm = nn.Linear(3, 64), nn.Dropout(0.2), nn.BatchNorm2d(1)

    def forward(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.norm(self.drop(self.linear(z)).view(-1, 1, 8, 8)))
