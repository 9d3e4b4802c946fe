"""An attack that knows the filter of LQ-VAE: a search for other bits. For surrogate gradients see ``Filter``."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from tutelage.attacks import Attack
from tutelage.attacks.attack import Radius
from tutelage.attacks.norms import project, steepest
from tutelage.methods.lq_vae.band import BAND, hard_bits
from tutelage.methods.lq_vae.fronts.lq_filter import Filter, filter_of
from tutelage.models.outputs import at_least_float32


class BitAttack(Attack):
    """Push the bits of each image towards those of an image that the network classifies otherwise.

    Of the images of ``pool`` whose predicted class is not the label, the target is that whose bits t differ least from
    the image's own. With mu the latent's means, projected gradient descent minimises

        sum_j max(0, t_j (|mu_j| - tau) + room)

    which is 0 once every bit is the target's, with ``room`` to the edge of the band. A sample stops as soon as the
    network misclassifies it. The encoder's gradient is exact, and the decoder and the classifier need none.
    """

    radius: Radius
    pool: Any = Field(description="(P, ...) images, from which the targets are chosen")
    steps: int = Field(default=50, ge=1, description="the number of steps")
    step_size: float | None = Field(default=None, ge=0, description="None for 2.5 radius / steps")
    room: float = Field(default=0.05, ge=0, description="the demanded distance of each mean from the edge of the band")

    def numbers(self, shape: torch.Size) -> int:
        """One per value, for the start."""
        return prod(shape)

    def search(self, model: nn.Module, inputs: Tensor, labels: Tensor, uniform: Tensor) -> Tensor:
        """See the class."""
        target = self._targets(model, inputs, labels)
        step_size = 2.5 * self.radius / self.steps if self.step_size is None else self.step_size
        start = inputs + (2 * uniform.view_as(inputs) - 1) * self.radius
        current = project(start, inputs, self.norm, self.radius)
        done = self.criterion.success(at_least_float32(model(inputs)), labels)
        result = torch.where(_per_sample(done, inputs), inputs, current)
        for _ in range(self.steps):
            with torch.enable_grad():
                pixels = current.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(bit_distance(_means(model, pixels), target, self.room).sum(), pixels)
            moved = current - step_size * steepest(gradient, current, self.norm)
            current = project(moved, inputs, self.norm, self.radius)
            result = torch.where(_per_sample(done, inputs), result, current)
            done = done | self.criterion.success(at_least_float32(model(result)), labels)
            if bool(done.all()):
                break
        return result

    def _targets(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        """The target bits, (B, D)."""
        pool = self.pool.to(inputs)
        own, others = hard_bits(_means(model, inputs)), hard_bits(_means(model, pool))
        differing = (own.shape[1] - own @ others.T) / 2
        same = at_least_float32(model(pool)).argmax(1)[None] == labels[:, None]
        return others[differing.masked_fill(same, float("inf")).argmin(1)]


def bit_distance(means: Tensor, target: Tensor, room: float) -> Tensor:
    """sum_j max(0, t_j (|mu_j| - tau) + room), (B,), for means (B, D) and target bits t (B, D) of -1 and +1."""
    return (target * (means.abs() - BAND) + room).clamp(min=0).sum(1)


def _means(model: nn.Module, pixels: Tensor) -> Tensor:
    """The latents' means of images in [0, 1], (B, D)."""
    module: Filter = filter_of(model)
    return at_least_float32(module.code((pixels - module.mean) / module.std))


def _per_sample(mask: Tensor, inputs: Tensor) -> Tensor:
    return mask.view(-1, *[1] * (inputs.ndim - 1))
