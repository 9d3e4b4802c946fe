"""The generator of SalGAN, a heavy network for saliency: a VGG-16 encoder and its mirror image as a decoder.

Pan, Canton, McGuinness, O'Connor, Torres, Sayrol, Giro-i-Nieto 2017, arXiv 1701.01081.
"""

from __future__ import annotations

import re
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.errors import TutelageError
from tutelage.models.family import Family
from tutelage.models.networks.resnet import he_initialise

CHANNELS = (64, 128, 256, 512, 512)
CONVOLUTIONS = (2, 2, 3, 3, 3)  # of each block, in the encoder and in the decoder


class SalGAN(nn.Module):
    """Thirteen 3x3 convolutions with max-pooling between blocks, as many with upsampling, and a 1x1 convolution.

    Unlike in SalGAN, each convolution is followed by batch normalisation: the authors start from a VGG-16 of ImageNet,
    and a plain network of 26 convolutions hardly trains from random weights.

    Args:
        image_shape: (C, H, W) of the images, of any size; maps are rounded up when they are halved.
        width: multiplies all channels.

    Attributes:
        roles: ``stage1`` .. ``stage5``, the blocks of the encoder; ``embedding``, the last of them, averaged;
            ``decoder1`` .. ``decoder4``, the blocks of the decoder below the size of the image, from fine to coarse:
            128, 256, 512 and 512 channels.

    Raises:
        TutelageError: the width is not positive.
    """

    roles: ClassVar[dict[str, str]] = {
        **{f"stage{number}": f"encoder.{number - 1}" for number in range(1, 6)},
        **{f"decoder{number}": f"decoder.{number}" for number in range(1, 5)},
        "embedding": "encoder.4",
    }

    def __init__(self, image_shape: tuple[int, int, int] = (3, 192, 256), width: float = 1) -> None:
        super().__init__()
        if not width > 0:
            raise TutelageError(f"SalGAN of width {width:g} has no channels: take a positive number, such as 0.5")
        channels = [max(1, round(base * width)) for base in CHANNELS]
        inputs = (image_shape[0], *channels)
        self.encoder = nn.ModuleList(_block(*sizes) for sizes in zip(inputs, channels, CONVOLUTIONS, strict=False))
        above = (*channels[1:], channels[-1])  # the decoder runs from the last block to the first
        self.decoder = nn.ModuleList(_block(*sizes) for sizes in zip(above, channels, CONVOLUTIONS, strict=True))
        he_initialise(self)
        self.head = nn.Conv2d(channels[0], 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to logits (B, 1, H, W)."""
        sizes = []
        for number, block in enumerate(self.encoder):
            x = block(F.max_pool2d(x, 2, ceil_mode=True) if number else x)
            sizes.append(x.shape[2:])
        for number in reversed(range(len(sizes))):
            x = self.decoder[number](x if x.shape[2:] == sizes[number] else F.interpolate(x, size=sizes[number]))
        logits: Tensor = self.head(x)
        return logits


def _block(in_channels: int, channels: int, convolutions: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number in range(convolutions):
        convolution = nn.Conv2d(channels if number else in_channels, channels, 3, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


FAMILY = Family(
    re.compile(r"salgan(?:x(?P<width>[0-9]+(?:\.[0-9]+)?))?"),
    SalGAN,
    ("salgan", "salganx0.25"),
    "saliency on VGG-16, a teacher for FastSal: salgan, or salganx<width> with all channels x width",
    "Pan et al. 2017, arXiv 1701.01081",
)
