"""An image generator of linear layers."""

from __future__ import annotations

import re
from itertools import pairwise

import torch
from torch import Tensor, nn

from tutelage.models.family import Family
from tutelage.models.sizes import scaled_channels


class MLPGenerator(nn.Module):
    """A generator of four linear layers with ReLU between them, followed by (1 + tanh) / 2, for pixels in [0, 1].

    Three hidden layers of 512 x width units have 2.2 million parameters for colour images of 32x32 pixels, as the
    student of AKDG; the layers themselves are [inferred] from that number.

    Args:
        image_shape: (C, H, W) of the images.
        width: multiplies the units of the hidden layers.
        latent: length of the latents.

    Raises:
        TutelageError: the width is too small for one unit.
    """

    def __init__(self, image_shape: tuple[int, int, int], width: float = 1, latent: int = 128) -> None:
        super().__init__()
        self.latent, self.image_shape = latent, image_shape
        units = scaled_channels("MLPGenerator", 512 * width)
        pixels = image_shape[0] * image_shape[1] * image_shape[2]
        sizes = (latent, units, units, units)
        hidden = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(units, pixels))

    def forward(self, latents: Tensor) -> Tensor:
        """Latents (B, latent) to images (B, C, H, W) in [0, 1]."""
        return (1 + torch.tanh(self.layers(latents).view(-1, *self.image_shape))) / 2


FAMILY = Family(
    re.compile(r"mlp-gan(?:x(?P<width>[0-9]+(?:\.[0-9]+)?))?"),
    MLPGenerator,
    ("mlp-gan", "mlp-ganx0.5"),
    "generator of four linear layers: mlp-gan, or mlp-ganx<width> with all hidden layers x width",
    "Goodfellow et al. 2014, arXiv 1406.2661",
)
