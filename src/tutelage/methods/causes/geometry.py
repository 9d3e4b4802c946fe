"""Data sets of two classes whose optimal decision boundary is known, for distances of adversarial examples.

All of them are vectors in [0, 1], as attacks need them: x' = 1/2 + x / (2 extent), with an extent that leaves room for
perturbations. Distances are in this unit; ``unit`` is the length of 1 in the unit of the definition. Class 1 is on the
side where the optimal score is positive. The extents are [ours]; the set of data sets is [inferred].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tutelage.data.data import Data
from tutelage.data.loader import mix_seeds
from tutelage.data.modality import Vectors
from tutelage.errors import TutelageError

Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
"""The number of samples and a generator to inputs (N, D), in the unit of the definition, and labels (N,)."""

_ROOM = 1.25  # the extent, as a multiple of the largest value of bounded data
_TAIL = 6.0  # standard deviations that the extent of Gaussian data includes


@dataclass(frozen=True)
class Reference:
    """Data of known geometry.

    Attributes:
        data: training and test split; nothing is held out.
        classifier: the optimal classifier, inputs (B, D) to logits (B, 2).
        distance: inputs (B, D) to their L2 distance from the optimal boundary (B,).
        unit: the length of 1 in the unit of the definition.
        bayes_error: the error of the optimal classifier.
    """

    data: Data
    classifier: nn.Module
    distance: Callable[[Tensor], Tensor]
    unit: float
    bayes_error: float


class TwoSided(nn.Module):
    """Logits (-s(x), s(x)) of a score s."""

    def __init__(self, score: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.score = score

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, D) to (B, 2)."""
        score = self.score(inputs)
        return torch.stack([-score, score], 1)


def spheres(size: int, radius: float = 1.3, *, train: int = 2000, test: int = 500, seed: int = 0) -> Reference:
    """Two concentric spheres of radius 1 (class 0) and R (class 1) in R^size; points are uniform on them.

    The optimal boundary, farthest from both, is the sphere of radius (1 + R) / 2, so that each point is (R - 1) / 2
    away from it, half the distance between the classes. Score: (||x||^2 - ((1 + R) / 2)^2) / 2, a quadratic function.

    Args:
        size: n, 1 or more.
        radius: R, above 1.
        train, test: numbers of samples.
        seed: of the samples.
    """
    if not 1 < radius < math.inf:
        raise TutelageError(f"the outer radius of the spheres must be above 1, got {radius}")
    extent, middle = _ROOM * radius, (1 + radius) / 2

    def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        labels = torch.arange(count) % 2
        directions = torch.nn.functional.normalize(_normal(count, size, generator), dim=1)
        return directions * (1 + (radius - 1) * labels.double())[:, None], labels

    def norm(inputs: Tensor) -> Tensor:
        length: Tensor = torch.linalg.vector_norm((inputs - 0.5) * (2 * extent), dim=1)
        return length

    return _reference(
        f"spheres of radius 1 and {radius:g} in {size} dimensions",
        _data(draw, extent, train, test, seed),
        lambda inputs: (norm(inputs).square() - middle**2) / 2,
        lambda inputs: (norm(inputs) - middle).abs(),
        extent,
        0.0,
    )


def gaussians(size: int, mean: float = 2.0, *, train: int = 2000, test: int = 500, seed: int = 0) -> Reference:
    """N(-m e_1, I) (class 0) and N(m e_1, I) (class 1), rotated: distance |x_1|, Bayes error Phi(-m).

    Args:
        size: the number of dimensions.
        mean: m, above 0.
        train, test, seed: as in ``spheres``.
    """
    return subspace(size, size, mean, 1.0, train=train, test=test, seed=seed)


def subspace(
    size: int, inside: int, mean: float = 2.0, noise: float = 0.1, *, train: int = 2000, test: int = 500, seed: int = 0
) -> Reference:
    """The Gaussians of ``gaussians`` in a subspace of ``inside`` dimensions, with noise tau outside of it.

    The basis is a random rotation, so that a normalisation of single features does not see the subspace. Directions out
    of the subspace do not change the class: the optimal boundary does not depend on them, and for tau -> 0 the data do
    not determine what a network does there.

    Args:
        size: the number of dimensions n.
        inside: the dimension k of the subspace, at most n.
        mean: m, above 0.
        noise: tau, the standard deviation outside of the subspace.
        train, test, seed: as in ``spheres``.
    """
    if not 1 <= inside <= size:
        raise TutelageError(f"a subspace of {size} dimensions has 1 to {size} dimensions, got {inside}")
    if not (mean > 0 and noise >= 0):
        raise TutelageError(f"the mean must be above 0 and the noise 0 or more, got {mean} and {noise}")
    basis: Tensor = torch.linalg.qr(_normal(size, size, torch.Generator().manual_seed(mix_seeds(seed, size)))).Q
    extent = mean + _TAIL
    scales = torch.where(torch.arange(size) < inside, 1.0, noise).double()

    def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        labels = torch.arange(count) % 2
        values = _normal(count, size, generator) * scales
        values[:, 0] += mean * (2 * labels - 1)
        return values @ basis.T, labels

    def along(inputs: Tensor) -> Tensor:
        return (inputs - 0.5) @ basis[:, 0].to(inputs) * (2 * extent)

    return _reference(
        f"Gaussians {2 * mean:g} apart in {inside} of {size} dimensions",
        _data(draw, extent, train, test, seed),
        along,
        lambda inputs: along(inputs).abs(),
        extent,
        0.5 * math.erfc(mean / math.sqrt(2)),
    )


def blocks(
    side: int = 12, patch: int = 3, amplitude: float = 0.4, *, train: int = 2000, test: int = 500, seed: int = 0
) -> Reference:
    """Images of side x side pixels whose classes differ in a patch of p = patch x patch pixels by the amplitude a.

    The pixels of the patch are 1/2 - a / 2 (class 0) or 1/2 + a / 2, all others uniform in [0, 1]. The distance between
    the classes is a sqrt(p) in L2 and a in the maximum norm; that of each image from the optimal boundary is half of
    it.

    Args:
        side: the side of the images, which are vectors of side^2 pixels.
        patch: the side of the patch, in the upper left corner.
        amplitude: a, in (0, 1].
        train, test, seed: as in ``spheres``.
    """
    if not (1 <= patch <= side and 0 < amplitude <= 1):
        raise TutelageError(
            f"the side of the patch must be 1 to {side} and the amplitude in (0, 1], got {patch} and {amplitude}"
        )
    mask = torch.zeros(side, side, dtype=torch.float64)
    mask[:patch, :patch] = 1
    mask = mask.flatten()

    def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        labels = torch.arange(count) % 2
        pixels = torch.rand(count, side * side, generator=generator, dtype=torch.float64)
        values = pixels * (1 - mask) + mask * (0.5 + amplitude * (labels.double() - 0.5))[:, None]
        return 2 * values - 1, labels

    def along(inputs: Tensor) -> Tensor:
        return (inputs - 0.5) @ mask.to(inputs) / patch

    return _reference(
        f"blocks of {patch * patch} pixels with amplitude {amplitude:g}",
        _data(draw, 1.0, train, test, seed),
        along,
        lambda inputs: along(inputs).abs(),
        0.5,
        0.0,
    )


def _normal(count: int, size: int, generator: torch.Generator) -> Tensor:
    return torch.randn(count, size, generator=generator, dtype=torch.float64)


def _data(draw: Draw, extent: float, train: int, test: int, seed: int) -> Callable[[str], Data]:
    """The data set by its name; its values are clipped to [0, 1], which Gaussian ones leave beyond 6 deviations."""
    pairs = []
    for number, count in enumerate((train, test)):
        values, labels = draw(count, torch.Generator().manual_seed(mix_seeds(seed, number)))
        pairs.append(((0.5 + values / (2 * extent)).clamp(0, 1).float(), labels))
    return lambda name: Data.from_arrays(
        pairs[0], pairs[1], classes=("inside", "outside"), name=name, modality=Vectors()
    )


def _reference(
    name: str,
    data: Callable[[str], Data],
    score: Callable[[Tensor], Tensor],
    distance: Callable[[Tensor], Tensor],
    extent: float,
    bayes_error: float,
) -> Reference:
    unit = 1 / (2 * extent)
    return Reference(data(name), TwoSided(score), lambda inputs: unit * distance(inputs), unit, bayes_error)
