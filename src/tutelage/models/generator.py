"""Image generators (as of a GAN) that can be students or teachers."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from tutelage.errors import TutelageError
from tutelage.models.modes import eval_mode
from tutelage.models.outputs import Outputs, at_least_float32
from tutelage.models.tapped import Tapped


class Generator(Tapped):
    """An image generator as a student or teacher.

    ``tap`` ignores the images of the batch: it draws one latent per sample from torch's global generator. It has two
    roles, ``image`` (B, C, H, W) in [0, 1] and its ``latent`` (B, latent), and no logits, so that methods that train
    classifiers raise an error.

    Args:
        module: from latents (B, ``module.latent``), standard normal, to images (B, C, H, W) in [0, 1]. There is no
            normalisation.
    """

    ROLES = ("image", "latent")

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module, roles={})

    @property
    def latent(self) -> int:
        """Length of a latent."""
        return int(self.module.latent)  # type: ignore[arg-type]

    def forward(self, latents: Tensor) -> Tensor:  # type: ignore[override]  # only latents
        """Latents (B, latent) to images (B, C, H, W) in [0, 1]."""
        if latents.ndim != 2 or latents.shape[1] != self.latent:
            raise TutelageError(
                f"{type(self.module).__name__} makes images from latents (B, {self.latent}) and was given "
                f"{tuple(latents.shape)}; to classify images, give a classifier"
            )
        images: Tensor = self.module(latents)
        return images

    def tap(self, inputs: Tensor, roles: Collection[str] = ("logits",), *, eager: bool = False) -> Outputs:
        """Generate as many images as there are inputs.

        Raises:
            TutelageError: a role other than ``image`` and ``latent``, such as logits.
        """
        for role in roles:
            if role not in self.ROLES:
                raise self._missing(role)
        self.passes += len(inputs)
        latents = torch.randn(len(inputs), self.latent, device=inputs.device)
        run = self if eager or self._compiled is None else self._compiled
        return Outputs(None, {"image": at_least_float32(run(latents)), "latent": latents})

    def trace(self, inputs: Tensor) -> Tapped:
        """Always raises an error: generators have no stages and no embedding.

        Raises:
            TutelageError: always.
        """
        raise self._missing("stages")

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, C, H, W) images, in eval mode without gradients; the latents are drawn on the generator's device."""
        latents = torch.randn(count, self.latent, generator=generator, device=generator.device)
        with eval_mode(self), torch.no_grad():
            return torch.cat([self(part).float() for part in torch.split(latents.to(self.mean.device), 512)])

    def with_size(self, size: tuple[int, int]) -> Tapped:
        """The generator itself: it reads no images that could be resized."""
        return self

    def _missing(self, feature: str) -> TutelageError:
        return TutelageError(
            f"{type(self.module).__name__} is a generator of images and has no {feature}; "
            "give a classifier, or choose a method that trains generators, for example akdg"
        )


def is_generator(module: nn.Module) -> bool:
    """Whether a network has an attribute ``latent``, the length of its latents, and maps latents to images.

    As a classifier may have such an attribute too, the network is run on two latents.
    """
    latent = getattr(module, "latent", None)
    if not isinstance(latent, int) or latent < 1:
        return False
    weight = next(module.parameters(), torch.empty(0))
    try:
        with eval_mode(module), torch.no_grad():
            images = module(torch.zeros(2, latent, device=weight.device))
    except Exception:  # a user's classifier may raise anything on latents
        return False
    return isinstance(images, Tensor) and images.ndim == 4 and len(images) == 2
