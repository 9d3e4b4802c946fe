"""The discriminator of adversarial distillation."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from tutelage.models.sizes import halved_sizes, scaled_channels


class Critic(nn.Module):
    """A discriminator with one score per image and spectral normalisation of each layer (Miyato et al. 2018).

    A 3x3 convolution; a 4x4 convolution with stride 2 that doubles the channels, for each halving of the map; leaky
    ReLU (0.1) after each; and a linear layer on the flattened last map.

    Args:
        image_shape: (C, H, W) of the images.
        width: multiplies the 64 channels of the first layer.

    Attributes:
        roles: the layer of the role ``score``, (B, 1).

    Raises:
        TutelageError: the width leaves no channels.
    """

    roles: ClassVar[dict[str, str]] = {"score": "score"}

    def __init__(self, image_shape: tuple[int, int, int], width: float = 1) -> None:
        super().__init__()
        sizes = halved_sizes(*image_shape[1:])
        channels = scaled_channels("Critic", 64 * width)
        layers: list[nn.Module] = [spectral_norm(nn.Conv2d(image_shape[0], channels, 3, padding=1)), nn.LeakyReLU(0.1)]
        for _ in sizes[1:]:
            layers += [spectral_norm(nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1)), nn.LeakyReLU(0.1)]
            channels *= 2
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.score = spectral_norm(nn.Linear(channels * sizes[-1][0] * sizes[-1][1], 1))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) to scores (B, 1)."""
        score: Tensor = self.score(self.body(images))
        return score
