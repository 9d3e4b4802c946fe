"""A network of tokens for tests of surgery and of conformance."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TokenMixer(nn.Module):
    """A transformer block whose attention is a linear layer across the tokens."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.across = nn.Linear(tokens, tokens)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.across(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return x + self.mlp(x)  # type: ignore[no-any-return]


class TokenNetwork(nn.Module):
    """Patches of 2x2 pixels of grey 8x8 images, a class token, four blocks, a head on the class token.

    The class token is a parameter outside of any layer.
    """

    def __init__(self, classes: int = 4, width: int = 8) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.blocks = nn.ModuleList([TokenMixer(width, 17) for _ in range(4)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])  # type: ignore[no-any-return]
