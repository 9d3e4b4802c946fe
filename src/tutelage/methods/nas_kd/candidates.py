"""The candidate operations on an edge of a cell: convolutions, pools, a skip and none, over the tokens of a text."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NONE, SKIP = 0, 1  # positions in CANDIDATES


@dataclass(frozen=True, slots=True)
class Candidate:
    """A candidate operation.

    Attributes:
        name: of its module.
        kernel: the number of tokens that it reads; 0 for none and skip.
        dilation: the distance between these tokens.
        learned: whether it is a convolution.
    """

    name: str
    kernel: int = 0
    dilation: int = 1
    learned: bool = False

    def build(self, channels: int, affine: bool) -> nn.Module:
        """A new module of this operation; ``affine``: whether its normalisation has parameters."""
        if self.learned:
            return Convolution(channels, self.kernel, self.dilation, affine)
        return {"none": None_, "skip": Skip, "avgpool3": AveragePool, "maxpool3": MaximumPool}[self.name]()

    def parameters(self, channels: int) -> int:
        """The number of weights of its convolution."""
        return self.kernel * channels**2 if self.learned else 0

    def flops(self, channels: int) -> int:
        """Floating-point operations per token, a multiply-add as 2; of a pool, the values that it reads."""
        return 2 * self.kernel * channels**2 if self.learned else self.kernel * channels


CANDIDATES = (
    Candidate("none"),
    Candidate("skip"),
    Candidate("avgpool3", 3),
    Candidate("maxpool3", 3),
    Candidate("conv3", 3, learned=True),
    Candidate("conv5", 5, learned=True),
    Candidate("conv7", 7, learned=True),
    Candidate("dilated3", 3, 2, learned=True),
    Candidate("dilated5", 5, 2, learned=True),
    Candidate("dilated7", 7, 2, learned=True),
)
"""In the order of the digits of a cell's name."""


def relative_costs(channels: int) -> Tensor:
    """Of each candidate, the mean of its parameters and its operations relative to the largest candidate, (10,)."""
    sizes = torch.tensor([candidate.parameters(channels) for candidate in CANDIDATES], dtype=torch.float32)
    flops = torch.tensor([candidate.flops(channels) for candidate in CANDIDATES], dtype=torch.float32)
    return (sizes / sizes.max() + flops / flops.max()) / 2


class Convolution(nn.Module):
    """ReLU, convolution over the tokens and normalisation of each token."""

    def __init__(self, channels: int, kernel: int, dilation: int, affine: bool) -> None:
        super().__init__()
        self.conv = nn.Conv1d(
            channels, channels, kernel, padding=dilation * (kernel // 2), dilation=dilation, bias=False
        )
        self.norm = nn.LayerNorm(channels, elementwise_affine=affine)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, T, C), 0 at padding, and (B, T, 1) to (B, T, C)."""
        out: Tensor = self.norm(self.conv(F.relu(x).transpose(1, 2)).transpose(1, 2))
        return out


class None_(nn.Module):  # noqa: N801 - None is a keyword
    """No edge: zeros."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, T, C) to zeros."""
        return torch.zeros_like(x)


class Skip(nn.Module):
    """The identity."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """The same tensor."""
        return x


class AveragePool(nn.Module):
    """The mean of a token and its neighbours; those beyond the text count as 0."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, T, C), 0 at padding, to (B, T, C)."""
        before, here, after = _neighbours(x, 0.0)
        return (before + here + after) / 3


class MaximumPool(nn.Module):
    """The maximum of a token and its neighbours within the text."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, T, C) and (B, T, 1) to (B, T, C)."""
        before, here, after = _neighbours(x.masked_fill(~mask, float("-inf")), float("-inf"))
        return torch.maximum(torch.maximum(before, after), here).masked_fill(~mask, 0.0)


def _neighbours(x: Tensor, fill: float) -> tuple[Tensor, Tensor, Tensor]:
    """The token before, the token and the token after each position of (B, T, C)."""
    padded = F.pad(x, (0, 0, 1, 1), value=fill)
    return padded[:, :-2], x, padded[:, 2:]
