"""An image generator of transposed convolutions."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from tutelage.models.family import Family
from tutelage.models.sizes import halved_sizes, scaled_channels


class DCGAN(nn.Module):
    """A convolutional generator: a linear layer to a small map, and transposed convolutions that double its size.

    The first map has the size of the image, halved while both sides are even and larger than 4; for 32 pixels there are
    5 layers. Each transposed convolution halves the channels, down to 64 x width. Between layers there are batch
    normalisation and ReLU. Weights are drawn from N(0, 0.02^2). The last layer is a 3x3 convolution followed by
    (1 + tanh) / 2, for pixels in [0, 1].

    Args:
        image_shape: (C, H, W) of the images.
        width: multiplies all channels.
        latent: length of the latents.

    Raises:
        TutelageError: the width is too small for one channel.
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
        """Initialise all weights; biases and batch norms keep the default initialisation."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, latents: Tensor) -> Tensor:
        """Latents (B, latent) to images (B, C, H, W) in [0, 1]."""
        maps = self.body(self.linear(latents).view(-1, *self.start))
        return (1 + torch.tanh(self.image(maps))) / 2


FAMILY = Family(
    re.compile(r"dcgan(?:x(?P<width>[0-9]+(?:\.[0-9]+)?))?"),
    DCGAN,
    ("dcgan", "dcganx0.5", "dcganx2"),
    "generator of transposed convolutions: dcgan, or dcganx<width> with all channels x width",
    "Radford, Metz, Chintala 2015, arXiv 1511.06434",
)
