"""VGG networks with batch normalization for small images, as in the tables of distillation papers.

Simonyan, Zisserman 2015, arXiv 1409.1556; the variant for CIFAR without hidden fully connected layers and its
eight-layer network are those of RepDistiller (Tian, Krishnan, Isola 2020).
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
CONVOLUTIONS = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
SMALL = 64  # images with a shorter side are pooled three times, others four times


class VGG(nn.Module):
    """Five blocks of 3x3 convolutions with batch normalization, max-pooling between them, a mean and a classifier.

    There is no pooling after the fourth block for images smaller than 64 pixels, whose last two blocks thus have maps
    of one size; a map of one pixel is never pooled. Convolutions start from He's normal initialisation (fan-out), the
    weights of the classifier from N(0, 0.01^2). Parameters have the names of RepDistiller.

    Args:
        depth: 8, 11, 13, 16 or 19.
        num_classes: outputs of ``classifier``.
        image_shape: (C, H, W) of the images.

    Attributes:
        roles: the first block is the stem, the other four are the stages, as in RepDistiller.

    Raises:
        TutelageError: there is no VGG of this depth.
    """

    roles: ClassVar[dict[str, str]] = {"stem": "block0"} | {f"stage{n}": f"block{n}" for n in range(1, 5)}

    def __init__(self, depth: int, num_classes: int = 10, image_shape: tuple[int, int, int] = (3, 32, 32)) -> None:
        super().__init__()
        if depth not in CONVOLUTIONS:
            raise TutelageError(f"there is no VGG of depth {depth}: take {', '.join(map(str, CONVOLUTIONS))}")
        inputs = (image_shape[0], *CHANNELS)
        for number, convolutions in enumerate(CONVOLUTIONS[depth]):
            setattr(self, f"block{number}", _block(inputs[number], CHANNELS[number], convolutions))
        self.pooled = 3 if min(image_shape[1:]) < SMALL else 4
        self.classifier = nn.Linear(CHANNELS[-1], num_classes)
        he_initialise(self)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to logits (B, num_classes)."""
        for number in range(len(CHANNELS)):
            x = self.get_submodule(f"block{number}")(x)
            if number < self.pooled and min(x.shape[2:]) > 1:
                x = F.max_pool2d(x, 2)
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits


def _block(in_channels: int, channels: int, convolutions: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number in range(convolutions):
        convolution = nn.Conv2d(channels if number else in_channels, channels, 3, padding=1)
        nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
        layers += [convolution, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


FAMILY = Family(
    re.compile(r"vgg(?P<depth>[0-9]+)"),
    VGG,
    tuple(f"vgg{depth}" for depth in CONVOLUTIONS),
    "VGG with batch normalization for small images: vgg<depth>",
    "Simonyan, Zisserman 2015, arXiv 1409.1556",
)
