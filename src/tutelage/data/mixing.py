"""Mixtures of the samples of a batch: mix-up and cut-mix."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.data.loader import mix_seeds


class Box(NamedTuple):
    """A rectangle of pixels: rows top to bottom - 1, columns left to right - 1."""

    top: int
    bottom: int
    left: int
    right: int


def soft_labels(targets: Tensor, classes: int) -> Tensor:
    """Class numbers (B,) as (B, C) float32, 0 for a sample without a label; soft labels as they are."""
    if targets.is_floating_point():
        return targets
    return (targets[:, None] == torch.arange(classes, device=targets.device)).float()


def blended(batch: Batch, share: float, partners: Tensor) -> Batch:
    """l x + (1 - l) x' with the soft label l y + (1 - l) y', where x' is another sample of the batch.

    Args:
        batch: with floating-point inputs and soft labels (B, C).
        share: l, in [0, 1].
        partners: (B,) int64 positions in the batch.
    """

    def mixed(values: Tensor) -> Tensor:
        return share * values + (1 - share) * values[partners]

    second = None if batch.second is None else mixed(batch.second)
    return replace(batch, inputs=mixed(batch.inputs), targets=mixed(batch.targets), second=second)


def pasted(batch: Batch, box: Box, partners: Tensor) -> Batch:
    """x with the pixels of x' in a box, and the soft label l y + (1 - l) y'; 1 - l is the box's share of the area.

    Args:
        batch: with images (B, C, H, W) and soft labels (B, C).
        box: the rectangle.
        partners: (B,) int64 positions in the batch.
    """
    rows, columns = slice(box.top, box.bottom), slice(box.left, box.right)
    height, width = batch.inputs.shape[2:]
    share = 1 - (box.bottom - box.top) * (box.right - box.left) / (height * width)

    def mixed(images: Tensor) -> Tensor:
        out = images.clone()
        out[:, :, rows, columns] = images[partners, :, rows, columns]
        return out

    second = None if batch.second is None else mixed(batch.second)
    targets = share * batch.targets + (1 - share) * batch.targets[partners]
    return replace(batch, inputs=mixed(batch.inputs), targets=targets, second=second)


@dataclass(frozen=True, slots=True)
class Mixing:
    """Mixes each training batch, by draws that depend on the seed and the number of the step alone.

    Mix-up: Zhang, Cisse, Dauphin, Lopez-Paz 2018, arXiv 1710.09412. Cut-mix: Yun, Han, Oh, Chun, Choe, Yoo 2019, arXiv
    1905.04899. The share l is drawn from Beta(alpha, alpha), once for a batch. With both, each batch gets one of them,
    with equal probability. The box of cut-mix has the sides sqrt(1 - l) H and sqrt(1 - l) W and a uniform centre, and
    is cut at the border; the labels are mixed by the area that remains.

    Attributes:
        mixup, cutmix: alpha of each; ``None`` if it is not used.
        seed: of the draws.
        rank: of this process, which mixes the samples of its own share of the batch.
    """

    mixup: float | None
    cutmix: float | None
    seed: int
    rank: int = 0

    def __call__(self, batch: Batch, number: int) -> Batch:
        """The mixed batch of a step, counted from 0; its ``key`` is ``None``: mixtures are no views of the data."""
        generator = np.random.default_rng(mix_seeds(self.seed, 11, number))
        alphas = [(cut, alpha) for cut, alpha in ((False, self.mixup), (True, self.cutmix)) if alpha is not None]
        cut, alpha = alphas[int(generator.integers(len(alphas)))]
        share = float(generator.beta(alpha, alpha))
        order = torch.Generator().manual_seed(mix_seeds(self.seed, 12, number, self.rank))
        partners = torch.randperm(len(batch), generator=order).to(batch.inputs.device, non_blocking=True)
        if not cut:
            return replace(blended(batch, share, partners), key=None)
        box = draw_box(share, batch.inputs.shape[2], batch.inputs.shape[3], generator)
        return replace(pasted(batch, box, partners), key=None)


def draw_box(share: float, height: int, width: int, generator: np.random.Generator) -> Box:
    """A box of cut-mix; its area is at most 1 - share of the image."""
    side = math.sqrt(1 - share)

    def interval(size: int) -> tuple[int, int]:
        half, centre = int(size * side) / 2, int(generator.integers(size))
        return max(0, math.floor(centre - half)), min(size, math.floor(centre + half))

    return Box(*interval(height), *interval(width))
