"""Networks that make images of random latents, in the place of networks that classify them."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from tutelage.errors import TutelageError
from tutelage.models.modes import eval_mode
from tutelage.models.outputs import Outputs, at_least_float32
from tutelage.models.tapped import Tapped


class Generator(Tapped):
    """A generator of images, as a network that learns or teaches.

    Shown a batch it draws as many latents from torch's global generator, whatever the batch's images are, and gives
    two roles: ``image`` (B, C, H, W) in [0, 1] and the ``latent`` (B, latent) that it was made of. It has no logits:
    a method that trains classifiers is refused.

    Args:
        module: from latents (B, ``module.latent``), standard normal, to images (B, C, H, W) in [0, 1]. It makes its
            pixels itself, so there is no normalisation.
    """

    ROLES = ("image", "latent")

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module, roles={})

    @property
    def latent(self) -> int:
        """Length of a latent."""
        return int(self.module.latent)  # type: ignore[arg-type]

    def forward(self, latents: Tensor) -> Tensor:  # type: ignore[override]  # latents alone
        """Latents (B, latent) to images (B, C, H, W) in [0, 1]."""
        if latents.ndim != 2 or latents.shape[1] != self.latent:
            raise TutelageError(
                f"{type(self.module).__name__} makes images of latents (B, {self.latent}) and was given "
                f"{tuple(latents.shape)}; where images are classified, give a classifier"
            )
        images: Tensor = self.module(latents)
        return images

    def tap(self, inputs: Tensor, roles: Collection[str] = ("logits",), *, eager: bool = False) -> Outputs:
        """As many new images as there are inputs.

        Raises:
            TutelageError: for logits, and for other roles that a generator does not have.
        """
        for role in roles:
            if role not in self.ROLES:
                raise self._no(role)
        self.passes += len(inputs)
        latents = torch.randn(len(inputs), self.latent, device=inputs.device)
        run = self if eager or self._compiled is None else self._compiled
        return Outputs(None, {"image": at_least_float32(run(latents)), "latent": latents})

    def trace(self, inputs: Tensor) -> Tapped:
        """Refused: a method that asks for stages or an embedding trains classifiers.

        Raises:
            TutelageError: always.
        """
        raise self._no("stages")

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, C, H, W) images in eval mode, without gradients; latents are drawn on the generator's device."""
        latents = torch.randn(count, self.latent, generator=generator, device=generator.device)
        with eval_mode(self), torch.no_grad():
            return torch.cat([self(part).float() for part in torch.split(latents.to(self.mean.device), 512)])

    def _no(self, what: str) -> TutelageError:
        return TutelageError(
            f"{type(self.module).__name__} is a generator of images and has no {what}; "
            "give a classifier, or choose a method that trains generators, akdg for instance"
        )


def is_generator(module: nn.Module) -> bool:
    """Whether a network names the length of its ``latent`` and makes images of latents.

    Classifiers may have an attribute of that name too, so that the network is run on two latents.
    """
    latent = getattr(module, "latent", None)
    if not isinstance(latent, int) or latent < 1:
        return False
    weight = next(module.parameters(), torch.empty(0))
    try:
        with eval_mode(module), torch.no_grad():
            images = module(torch.zeros(2, latent, device=weight.device))
    except Exception:  # whatever somebody else's network does with inputs that are not for it
        return False
    return isinstance(images, Tensor) and images.ndim == 4 and len(images) == 2
