"""Adversarial paths in the latent space of an autoencoder, and the choice of one point of each (Patel et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.data.per_sample import PerSample
from tutelage.data.split import Split
from tutelage.models.modes import eval_mode
from tutelage.models.outputs import Outputs, at_least_float32
from tutelage.terms.term import View

Choice = Literal["uniform", "boundary", "early"]


class Paths(NamedTuple):
    """Paths of N latents.

    Attributes:
        latents: z_k, (N, K + 1, D); the last point is repeated after the end of a path.
        labels: s_k = softmax(c(z_k)), (N, K + 1, C).
        length: the number of steps until the end, (N,) int64, from 0 to K.
    """

    latents: Tensor
    labels: Tensor
    length: Tensor


@torch.no_grad()
def latent_paths(
    classifier: nn.Module,
    start: Tensor,
    targets: Tensor,
    *,
    steps: int,
    size: float,
    stop: float = 0.9,
    limit: float = math.inf,
) -> Paths:
    """Walk towards a target class by normalised gradient steps.

        z_{k+1} = z_k - eta g / ||g||_2,   g = d CE(c(z_k), t) / dz,   until p_t(z) >= kappa or k = K

    A point outside of the ball with radius ``limit`` is scaled back onto it: beyond the training latents a decoder
    returns images of nothing, and the classifier is confident of them.

    Args:
        classifier: c, (N, D) to logits (N, C); in eval mode, and it gets no gradient.
        start: z_0, (N, D).
        targets: t, (N,) int64.
        steps: K, 0 or more.
        size: eta, in the unit of the latents.
        stop: kappa.
        limit: the largest norm of a point after a step.
    """
    point, latents = start, [start]
    length = torch.zeros_like(targets)
    labels = [_probabilities(classifier, start)]
    for _ in range(steps):
        active = labels[-1].gather(1, targets[:, None]).squeeze(1) < stop
        with torch.enable_grad(), eval_mode(classifier):
            inputs = point.detach().requires_grad_()
            loss = F.cross_entropy(classifier(inputs), targets, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, inputs)
        moved = point - size * F.normalize(gradient, dim=1, eps=1e-30)
        norm = moved.norm(dim=1, keepdim=True)
        moved = moved * (limit / norm).clamp(max=1)
        point = torch.where(active[:, None], moved, point)
        length = length + active
        latents.append(point)
        labels.append(_probabilities(classifier, point))
    return Paths(torch.stack(latents, 1), torch.stack(labels, 1), length)


def _probabilities(classifier: nn.Module, latents: Tensor) -> Tensor:
    with eval_mode(classifier):
        return at_least_float32(classifier(latents)).softmax(1)


def entropies(labels: Tensor) -> Tensor:
    """H = -sum_c s_c log s_c of soft labels: (..., C) to (...), nats."""
    values: Tensor = torch.special.entr(labels).sum(-1)
    return values


def uniform(paths: Paths) -> Tensor:
    """Weights of the points, (N, K + 1): 1 for each up to the end of the path."""
    numbers = torch.arange(paths.latents.shape[1], device=paths.length.device)
    return (numbers <= paths.length[:, None]).to(paths.labels)


def boundary(paths: Paths) -> Tensor:
    """Weights of the points, (N, K + 1): the entropies of their soft labels."""
    return uniform(paths) * entropies(paths.labels).clamp(min=1e-12)


def early(paths: Paths) -> Tensor:
    """Weights of the points, (N, K + 1): 1 before the predicted class changes for the first time."""
    predicted = paths.labels.argmax(2)
    changed = (predicted != predicted[:, :1]).cumsum(1) > 0
    return uniform(paths) * ~changed


CHOICES: Mapping[Choice, Callable[[Paths], Tensor]] = MappingProxyType(
    {"uniform": uniform, "boundary": boundary, "early": early}
)
"""The weights by which a point of a path is drawn."""


class OnManifold(View):
    """For each sample of the batch a decoded point of its path, with the soft label of the latent classifier.

    The point is drawn anew in each step, by torch's global generator. Latents and soft labels are stored in float16.

    Args:
        split: the training split.
        paths: one for each of its samples, in order, on the device of the training.
        weights: (N, K + 1) of ``CHOICES``.
        decoder: latents (B, D) to images (B, C, H, W) in [0, 1]; frozen.
    """

    def __init__(self, split: Split, paths: Paths, weights: Tensor, decoder: nn.Module) -> None:
        device = paths.latents.device
        self.latents = PerSample(split, paths.latents.half()).to(device)
        self.labels, self.cumulative = paths.labels.half(), weights.cumsum(1)
        self.decoder = decoder

    def __call__(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> Batch:
        """The decoded images and their soft labels."""
        rows = self.latents.rows(batch.index)
        cumulative = self.cumulative[rows]
        drawn = torch.rand(len(rows), 1, device=rows.device) * cumulative[:, -1:]
        points = (cumulative <= drawn).sum(1).clamp(max=cumulative.shape[1] - 1)
        latents, labels = self.latents.values[rows, points].float(), self.labels[rows, points].float()
        with torch.no_grad(), eval_mode(self.decoder):
            images = at_least_float32(self.decoder(latents))
        return replace(batch, inputs=images, targets=labels / labels.sum(1, keepdim=True))
