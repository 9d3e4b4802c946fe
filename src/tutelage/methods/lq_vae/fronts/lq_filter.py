"""The filter of LQ-VAE: an image is reconstructed from one bit for each entry of its latent."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from tutelage.attacks import SurrogateGradient
from tutelage.errors import TutelageError
from tutelage.methods.lq_vae.band import SoftBits, hard_bits
from tutelage.models.networks.autoencoder import Decoder, Encoder
from tutelage.text import value_text

SLOPES = {"soft100": 100.0, "soft20": 20.0, "soft5": 5.0}
"""The surrogates of the bits' gradient by the slope of ``soft_bits``; at the 500 of the training it is nearly 0."""


class Filter(nn.Module):
    """G_d(b(mu(x))) as a layer: deterministic, of the latent's mean, and without any gradient (``hard_bits``).

    It declares ``surrogates``, differentiable functions of its input, whose gradient an attack can use in its place:
    ``soft100``, ``soft20`` and ``soft5``, in which only the bits have another gradient, that of ``soft_bits`` with this
    slope; ``straight``, in which it is that of the identity; and ``identity``, the identity in place of the filter.

    Args:
        image_shape: (C, H, W) of the images.
        mean, std: the normalisation of the inputs, which the filter removes and applies again; one number per channel.
        latent: D, the number of bits.
        width: multiplies the channels of encoder and decoder.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, image_shape: tuple[int, int, int], mean: Sequence[float], std: Sequence[float], latent: int, width: float
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(image_shape, 2 * latent, width), Decoder(image_shape, latent, width)
        self.latent = latent
        self.register_buffer("mean", torch.tensor(list(mean)).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) to normalised images of the same shape."""
        return self.decoded(hard_bits, images)

    @property
    def surrogates(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """By name, functions of the filter's input whose gradients stand in for its own."""
        replacements: dict[str, nn.Module] = {name: SoftBits(slope) for name, slope in SLOPES.items()}
        replacements["straight"] = nn.Identity()
        bits = {name: SurrogateGradient(hard_bits, replacement) for name, replacement in replacements.items()}
        return {name: partial(self.decoded, layer) for name, layer in bits.items()} | {"identity": nn.Identity()}

    def decoded(self, bits: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) to the images that their bits decode to, normalised.

        Args:
            bits: from means (B, D) to bits (B, D).
            images: see above.
        """
        pixels: Tensor = self.decoder(bits(self.code(images)))
        return (pixels - self.mean) / self.std

    def code(self, images: Tensor) -> Tensor:
        """The latents' means mu, (B, D), of normalised images (B, C, H, W). The encoder takes pixels in [-1, 1]."""
        means: Tensor = self.encoder(2 * (images * self.std + self.mean) - 1)[:, : self.latent]
        return means


def filter_of(network: nn.Module) -> Filter:
    """The filter in a network.

    Raises:
        TutelageError: it has none.
    """
    for module in network.modules():
        if isinstance(module, Filter):
            return module
    raise TutelageError(f"{type(network).__name__} has no filter of LQ-VAE; give a network that lq_vae trained")


def build(example: Tensor, *, mean: Sequence[float], std: Sequence[float], latent: int, width: float) -> Filter:
    """The filter with initial weights.

    Args:
        example: images as the network takes them, (B, C, H, W).
        mean, std: the network's normalisation, C numbers each.
        latent, width: see ``Filter``.

    Raises:
        TutelageError: the inputs are not images, mean or std are not C finite numbers, or the sizes are too small.
    """
    if example.ndim != 4:
        raise TutelageError(
            f"the filter of LQ-VAE is for images, and the inputs have shape {tuple(example.shape[1:])}; give images "
            "(C, H, W)"
        )
    channels, height, columns = (int(size) for size in example.shape[1:])
    for noun, values in {"mean": mean, "std": std}.items():
        are_numbers = isinstance(values, list | tuple) and all(isinstance(value, int | float) for value in values)
        if not are_numbers or len(values) != channels or not all(map(math.isfinite, values)):
            raise TutelageError(
                f"the {noun} of the filter must be {channels} finite numbers, one per channel, got {value_text(values)}"
            )
    return Filter((channels, height, columns), mean, std, int(latent), float(width)).to(example.device)
