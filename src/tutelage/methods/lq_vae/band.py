"""The code of LQ-VAE: one bit for each entry of a latent, which says whether the entry is within a band around 0."""

from __future__ import annotations

from torch import Tensor, nn

BAND = 0.1
"""tau: half the width of the band."""

SLOPE = 500.0
"""Of the soft bits in training."""


def hard_bits(z: Tensor) -> Tensor:
    """+1 where |z| < 0.1 and -1 elsewhere, of the shape of z: sign(tau^2 - z^2), whose gradient is 0."""
    return 2 * (z.detach().abs() < BAND).to(z) - 1


def soft_bits(z: Tensor, slope: float = SLOPE) -> Tensor:
    """softsign(slope (tau^2 - z^2)) with softsign(u) = u / (1 + |u|): values in (-1, 1), of the shape of z."""
    return nn.functional.softsign(slope * (BAND**2 - z.square()))


class SoftBits(nn.Module):
    """``soft_bits`` as a layer.

    Args:
        slope: of the argument of softsign.
    """

    def __init__(self, slope: float = SLOPE) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, z: Tensor) -> Tensor:
        """(B, D) to the same shape."""
        return soft_bits(z, self.slope)
