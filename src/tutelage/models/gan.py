"""Two small generators of images: a DCGAN and an MLP."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from tutelage.errors import TutelageError

SMALLEST = 4  # pixels a side at which a generator's maps begin and a critic's end


class DCGAN(nn.Module):
    """A convolutional generator: a linear layer to a small map, which each transposed convolution doubles.

    The map begins at the image's size, halved while both sides are even and larger than 4, so 32 pixels give 5 layers;
    its channels are halved each time, down to 64 x width. Batch normalisation and ReLU between layers, weights drawn
    from N(0, 0.02^2); the last layer is a 3x3 convolution to (1 + tanh) / 2, pixels in [0, 1].

    Args:
        image_shape: (C, H, W) of the images.
        width: multiplies all channels.
        latent: length of a latent.

    Raises:
        TutelageError: the width leaves no channels.
    """

    def __init__(self, image_shape: tuple[int, int, int], width: float = 1, latent: int = 128) -> None:
        super().__init__()
        self.latent = latent
        sizes = halved_sizes(*image_shape[1:])
        widest = scaled_channels("DCGAN", 64 * width) * 2 ** (len(sizes) - 1)
        self.start = (widest, *sizes[-1])
        self.linear = nn.Linear(latent, widest * sizes[-1][0] * sizes[-1][1])
        layers: list[nn.Module] = [nn.BatchNorm2d(widest), nn.ReLU()]
        for channels in (widest // 2**i for i in range(1, len(sizes))):
            layers += [nn.ConvTranspose2d(2 * channels, channels, 4, stride=2, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(channels), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.image = nn.Conv2d(widest // 2 ** (len(sizes) - 1), image_shape[0], 3, padding=1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights; biases and normalisations are as their layers have them."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, latents: Tensor) -> Tensor:
        """Latents (B, latent) to images (B, C, H, W) in [0, 1]."""
        maps = self.body(self.linear(latents).view(-1, *self.start))
        return (1 + torch.tanh(self.image(maps))) / 2


class MLPGenerator(nn.Module):
    """A generator of four linear layers with ReLU between them; (1 + tanh) / 2 gives pixels in [0, 1].

    Three layers of 512 x width units make 2.2 million parameters for 32 pixels and colour, as the student of AKDG has;
    its layers themselves are [inferred] from that number.

    Args:
        image_shape: (C, H, W) of the images.
        width: multiplies the units of the hidden layers.
        latent: length of a latent.

    Raises:
        TutelageError: the width leaves no units.
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


def halved_sizes(height: int, width: int) -> Sequence[tuple[int, int]]:
    """The sizes of an image's feature maps: halved while both sides are even and larger than ``SMALLEST``."""
    sizes = [(height, width)]
    while min(height, width) > SMALLEST and height % 2 == width % 2 == 0:
        height, width = height // 2, width // 2
        sizes.append((height, width))
    return sizes


def scaled_channels(network: str, channels: float) -> int:
    """``channels``, rounded.

    Raises:
        TutelageError: none are left.
    """
    if round(channels) < 1:
        raise TutelageError(f"the width of this {network} leaves {channels:g} channels: take a larger one")
    return round(channels)
