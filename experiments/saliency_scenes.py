"""Scenes with a known density of fixations: coloured blobs, whose conspicuity is hidden, on a textured background."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.data import CropsAndFlips, Data, Maps, Split
from tutelage.data.formats.fixations import fixation_planes

SIZE = (48, 64)
SIGMA = 3.0  # pixels, of the maps of fixations
TRAINING_FIXATIONS, TEST_FIXATIONS = 15, 60
WEIGHTS = (1.0, 0.1, 0.5, 0.2)  # of the hues: red, green, blue and yellow
COLOURS = ((0.85, 0.2, 0.2), (0.2, 0.75, 0.25), (0.2, 0.3, 0.85), (0.85, 0.8, 0.2))


def scene(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """An image (H, W, 3) in [0, 1] and the density (H, W) of sum 1 that its fixations have."""
    height, width = SIZE
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    noise = torch.rand(3, height // 4, width // 4, generator=generator)
    image = 0.35 + 0.3 * F.interpolate(noise[None], size=SIZE, mode="bilinear", align_corners=False)[0]
    density = 0.02 * torch.exp(-(((y - height / 2) / 12) ** 2 + ((x - width / 2) / 16) ** 2) / 2)
    for _ in range(int(uniform(3, 7))):
        hue, radius = int(uniform(0, 4)), uniform(3.0, 6.0)
        row, column = uniform(5, height - 5), uniform(5, width - 5)
        distance = ((y - row) ** 2 + (x - column) ** 2).sqrt()
        opacity, contrast = torch.sigmoid(2 * (radius - distance)), uniform(0.3, 1.0)
        colour = torch.tensor(COLOURS[hue])[:, None, None]
        image = image + contrast * opacity * (colour - image)
        density = density + WEIGHTS[hue] * contrast * torch.exp(-(distance**2) / (2 * radius**2))
    grain = 0.06 * torch.randn(3, height, width, generator=generator)
    return (image + grain).clamp(0, 1).permute(1, 2, 0), density / density.sum()


def fixations(density: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Points (K, 2) drawn from a density, x and y in pixels."""
    places = torch.multinomial(density.flatten(), count, replacement=True, generator=generator)
    within = torch.rand(count, 2, generator=generator)
    return torch.stack([places % SIZE[1], places // SIZE[1]], 1) + within


def split(count: int, seed: int, *, known: bool) -> Split:
    """Scenes with maps of a few fixations, or with the known density and many fixations."""
    generator = torch.Generator().manual_seed(seed)
    images, labels = torch.empty(count, *SIZE, 3, dtype=torch.uint8), torch.empty(count, 2, *SIZE)
    for number in range(count):
        image, density = scene(generator)
        images[number] = (255 * image).round().to(torch.uint8)
        points = fixations(density, TEST_FIXATIONS if known else TRAINING_FIXATIONS, generator)
        labels[number] = fixation_planes(points, SIZE, SIGMA)
        if known:
            labels[number, 0] = density / density.max()
    return Split.of(images, labels, targets=Maps())


@functools.cache
def scenes(training: int, test: int) -> Data:
    """Training scenes with maps of 15 fixations, and test scenes with known densities."""
    train, known = split(training, 1, known=False), split(test, 2, known=True)
    return Data("scenes", ("saliency",), train, known, views=CropsAndFlips(pad=0, flip=True))
