"""Metrics of generated images against closed forms, plain loops and other libraries."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tutelage.data import Data
from tutelage.evaluation import (
    cost_of,
    coverage,
    evaluate_generator,
    frechet_distance,
    frechet_distance_of,
    inception_score,
)
from tutelage.evaluation.generative import _shrunk
from tutelage.models.generator import Generator
from tutelage.models.networks.mlp_gan import MLPGenerator
from tutelage.models.tapped import Tapped


def gaussian(count: int, size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return torch.randn(count, size, generator=generator, dtype=torch.float64) @ mix + seed


@pytest.mark.parametrize("size", [1, 3, 20])
def test_frechet_distance_of_two_isotropic_gaussians(size: int) -> None:
    """The distance of N(0, I) and N(mu, s^2 I) is |mu|^2 + d (1 - s)^2."""
    mean, scale = torch.linspace(-1, 2, size), 1.7
    result = frechet_distance(torch.zeros(size), torch.eye(size), mean, scale**2 * torch.eye(size))
    assert result == pytest.approx(mean.square().sum().item() + size * (1 - scale) ** 2, rel=1e-6)


def test_frechet_distance_to_itself_is_zero_for_singular_covariances() -> None:
    full, thin = gaussian(300, 8), gaussian(5, 8)
    assert frechet_distance_of(full, full) == pytest.approx(0, abs=1e-9)
    assert frechet_distance_of(thin, thin) == pytest.approx(0, abs=1e-3)
    flat = torch.zeros(4, 3)
    assert frechet_distance_of(flat, flat) == 0


def test_frechet_distance_against_sqrtm_of_scipy() -> None:
    scipy_linalg = pytest.importorskip("scipy.linalg")
    first, second = gaussian(100, 6), gaussian(80, 6, seed=1)
    a, b = (torch.cov(x.T) for x in (first, second))
    root = torch.from_numpy(scipy_linalg.sqrtm((a @ b).numpy()).real)
    gap = (first.mean(0) - second.mean(0)).square().sum()
    expected = float(gap + a.trace() + b.trace() - 2 * root.trace())
    assert frechet_distance_of(first, second) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance_of(second, first) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_against_torchmetrics() -> None:
    fid = pytest.importorskip("torchmetrics.image.fid")

    class Pixels(nn.Module):
        num_features = 4

        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1).double()

    reference = fid.FrechetInceptionDistance(feature=Pixels(), normalize=True, input_img_size=(1, 2, 2))
    reference.set_dtype(torch.float64)
    first, second = torch.rand(50, 1, 2, 2), torch.rand(40, 1, 2, 2).square()
    reference.update(first, real=True)
    reference.update(second, real=False)
    expected = frechet_distance_of(first.flatten(1), second.flatten(1))
    assert float(reference.compute()) == pytest.approx(expected, rel=1e-6)


def test_inception_score_of_uniform_and_one_hot_probabilities() -> None:
    assert inception_score(torch.full((12, 5), 0.2)) == pytest.approx(1)
    assert inception_score(torch.eye(5).repeat(4, 1)) == pytest.approx(5)
    assert inception_score(torch.eye(5)[:1].repeat(4, 1)) == pytest.approx(1)  # a single class


def test_inception_score_against_plain_loops() -> None:
    p = gaussian(30, 4).softmax(1)
    mean = [sum(row[c] for row in p.tolist()) / 30 for c in range(4)]
    total = sum(sum(q * math.log(q / m) for q, m in zip(row, mean, strict=True)) for row in p.tolist())
    assert inception_score(p) == pytest.approx(math.exp(total / 30), rel=1e-9)


def test_coverage_against_plain_loops() -> None:
    real_samples, generated = gaussian(40, 3), gaussian(15, 3, seed=0)[:15] * 1.5
    hits = 0
    for i in range(40):
        distances = sorted(float((real_samples[i] - real_samples[j]).norm()) for j in range(40) if j != i)
        hits += min(float((real_samples[i] - x).norm()) for x in generated) <= distances[4]
    assert coverage(real_samples, generated) == pytest.approx(hits / 40)
    assert coverage(real_samples, real_samples) == 1
    assert coverage(real_samples, generated + 1000) == 0
    assert coverage(real_samples[:2], real_samples[:2]) == 1  # fewer samples than neighbours


class Copier(nn.Module):
    """A generator that returns one of the given images, selected by the first latent, or their mean if blurred."""

    latent = 2

    def __init__(self, images: Tensor, blur: bool = False) -> None:
        super().__init__()
        self.images, self.blur = nn.Parameter(images), blur

    def forward(self, latents: Tensor) -> Tensor:
        index = (torch.special.ndtr(latents[:, 0]) * len(self.images)).long().clamp(max=len(self.images) - 1)
        return self.images.mean(0).expand(len(latents), -1, -1, -1) if self.blur else self.images[index]


def images_of(data: Data) -> Tensor:
    assert isinstance(data.test.inputs, Tensor)
    return data.test.inputs.permute(0, 3, 1, 2) / 255


def test_generator_is_evaluated(tiny_data: Data, trained_model: Callable[..., Tapped]) -> None:
    images = images_of(tiny_data)
    exact_generator, blurred_generator = Generator(Copier(images)), Generator(Copier(images, blur=True))
    result = evaluate_generator(exact_generator, tiny_data, teacher=blurred_generator)
    assert result["samples"] == 2000
    assert "64 principal components of the test part's pixels" in result["features"]
    assert result["coverage"] == 1
    blurred = evaluate_generator(blurred_generator, tiny_data)
    assert result["frechet_distance"] < 0.1 * blurred["frechet_distance"]
    assert result["teacher_frechet_distance"] == blurred["frechet_distance"]
    assert evaluate_generator(exact_generator, tiny_data)["frechet_distance"] == result["frechet_distance"]

    classifier = trained_model()
    before = classifier.training
    by_class = evaluate_generator(exact_generator, tiny_data, classifier=classifier)
    assert by_class["features"] == "the embedding of a classifier, TinyNet"
    assert 1 < by_class["inception_score"] <= 4
    assert evaluate_generator(blurred_generator, tiny_data, classifier=classifier)["inception_score"] == pytest.approx(
        1
    )
    assert classifier.training == before


def test_large_images_are_downsampled_by_averaging(tiny_data: Data) -> None:
    assert _shrunk(torch.rand(2, 3, 8, 8)).shape == (2, 192)
    assert _shrunk(torch.rand(2, 1, 33, 20)).shape == (2, 11 * 7)
    flat = torch.full((1, 1, 35, 35), 0.25)
    assert torch.allclose(_shrunk(flat), torch.tensor(0.25))


def test_other_image_shapes_and_unknown_splits_are_refused(tiny_data: Data, refused: Any) -> None:
    generator = Generator(Copier(torch.rand(4, 1, 5, 5)))
    with refused("(1, 5, 5)", "(1, 8, 8)", "give a generator of images of this shape"):
        evaluate_generator(generator, tiny_data)
    with refused("unknown split", "exam"):
        evaluate_generator(generator, tiny_data, split="exam")


def test_cost_of_a_generator_is_that_of_one_image(tiny_data: Data) -> None:
    cost = cost_of(Generator(MLPGenerator((1, 8, 8), width=10 / 512, latent=6)), torch.full((1, 6), 0.5))
    assert cost["parameters"] == 6 * 10 + 10 + 2 * 110 + 10 * 64 + 64
    assert cost["flops"] == 2 * (6 * 10 + 2 * 100 + 640)
