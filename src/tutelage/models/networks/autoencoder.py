"""A convolutional autoencoder without normalisation layers; its encoder and its decoder are also used by themselves."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from tutelage.errors import TutelageError
from tutelage.models.family import Family
from tutelage.models.sizes import halved_sizes, scaled_channels

SLOPE = 0.2  # of the leaky ReLU


class Encoder(nn.Module):
    """An image to a vector: 3x3 convolutions, a hidden layer of 1024 x width units, and a linear layer.

    The map is halved by a convolution of stride 2 while both sides are even and larger than 4; a convolution precedes
    these and another follows. Maps of the full and the half size have 64 x width channels, smaller ones and the last
    convolution 128 x width. A leaky ReLU (0.2) follows each layer but the last. For 28x28 pixels these are the layers
    of LQ-VAE's encoder.

    Args:
        image_shape: (C, H, W) of the images.
        outputs: length of the vector, for example twice that of a latent with a mean and a variance.
        width: multiplies all channels and the units of the hidden layer.

    Raises:
        TutelageError: the width is too small for one channel, or there is no output.
    """

    def __init__(self, image_shape: tuple[int, int, int], outputs: int, width: float = 1) -> None:
        super().__init__()
        _check_length("Encoder", "outputs", outputs)
        sizes, narrow, wide, units = _sizes("Encoder", image_shape, width)
        layers: list[nn.Module] = [nn.Conv2d(image_shape[0], narrow, 3, padding=1), nn.LeakyReLU(SLOPE)]
        channels = narrow
        for number in range(1, len(sizes)):
            after = narrow if number == 1 else wide
            layers += [nn.Conv2d(channels, after, 3, stride=2, padding=1), nn.LeakyReLU(SLOPE)]
            channels = after
        layers += [nn.Conv2d(channels, wide, 3, padding=1), nn.LeakyReLU(SLOPE), nn.Flatten()]
        self.convolutions = nn.Sequential(*layers)
        self.hidden = nn.Sequential(nn.Linear(wide * sizes[-1][0] * sizes[-1][1], units), nn.LeakyReLU(SLOPE))
        self.output = nn.Linear(units, outputs)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) to (B, outputs)."""
        result: Tensor = self.output(self.hidden(self.convolutions(images)))
        return result


class Decoder(nn.Module):
    """A latent to an image in [0, 1]: the layers of ``Encoder`` in reverse, and (1 + tanh) / 2.

    Two linear layers, then a 3x3 transposed convolution for each convolution of the encoder. It can be trained as a
    generator, too.

    Args:
        image_shape: (C, H, W) of the images.
        latent: length of the latents.
        width: multiplies all channels and the units of the hidden layer.

    Raises:
        TutelageError: the width is too small for one channel, or the latent is empty.
    """

    def __init__(self, image_shape: tuple[int, int, int], latent: int, width: float = 1) -> None:
        super().__init__()
        _check_length("Decoder", "latent", latent)
        self.latent = latent
        sizes, narrow, wide, units = _sizes("Decoder", image_shape, width)
        self.start = (wide, *sizes[-1])
        self.hidden = nn.Sequential(
            nn.Linear(latent, units),
            nn.LeakyReLU(SLOPE),
            nn.Linear(units, wide * sizes[-1][0] * sizes[-1][1]),
            nn.LeakyReLU(SLOPE),
        )
        layers: list[nn.Module] = [nn.ConvTranspose2d(wide, wide, 3, padding=1), nn.LeakyReLU(SLOPE)]
        channels = wide
        for number in range(len(sizes) - 1, 0, -1):
            after = narrow if number == 1 else wide
            layers += [nn.ConvTranspose2d(channels, after, 3, stride=2, padding=1, output_padding=1)]
            layers += [nn.LeakyReLU(SLOPE)]
            channels = after
        self.convolutions = nn.Sequential(*layers, nn.ConvTranspose2d(channels, image_shape[0], 3, padding=1))

    def forward(self, latents: Tensor) -> Tensor:
        """Latents (B, latent) to images (B, C, H, W) in [0, 1]."""
        return (1 + torch.tanh(self.convolutions(self.hidden(latents).view(-1, *self.start)))) / 2


class Autoencoder(nn.Module):
    """``Encoder`` and ``Decoder``: an image to its reconstruction in [0, 1].

    Args:
        image_shape: (C, H, W) of the images.
        latent: length of the latents.
        width: multiplies all channels and the units of the hidden layers.

    Attributes:
        roles: the layers of the roles ``latent``, (B, latent), and ``image``, (B, C, H, W).

    Raises:
        TutelageError: the width is too small for one channel, or the latent is empty.
    """

    roles: ClassVar[dict[str, str]] = {"latent": "encoder", "image": "decoder"}

    def __init__(self, image_shape: tuple[int, int, int], latent: int = 64, width: float = 1) -> None:
        super().__init__()
        self.encoder = Encoder(image_shape, latent, width)
        self.decoder = Decoder(image_shape, latent, width)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) to their reconstructions (B, C, H, W) in [0, 1]."""
        result: Tensor = self.decoder(self.encoder(images))
        return result


def _sizes(network: str, image: tuple[int, int, int], width: float) -> tuple[Sequence[tuple[int, int]], int, int, int]:
    """The sizes of the maps, the channels of large and of small maps, and the units of the hidden layer."""
    narrow = scaled_channels(network, 64 * width)
    return halved_sizes(*image[1:]), narrow, 2 * narrow, 16 * narrow


def _check_length(network: str, noun: str, length: int) -> None:
    if length < 1:
        raise TutelageError(f"{noun} of this {network} must be at least 1, got {length}")


FAMILY = Family(
    re.compile(r"autoencoder-(?P<latent>[0-9]+)(?:x(?P<width>[0-9]+(?:\.[0-9]+)?))?"),
    Autoencoder,
    ("autoencoder-64", "autoencoder-16x0.25"),
    "convolutional autoencoder: autoencoder-<length of the latent>, or with x<width> all channels x width",
    "layers of Kyatham et al. 2020, arXiv 1903.09940",
)
