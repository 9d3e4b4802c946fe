"""Evaluation of generators: the distance between the distributions of generated and real images."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.ambient import default_settings
from tutelage.data.data import Data, Split
from tutelage.data.loader import evaluation_batches
from tutelage.errors import TutelageError, unknown
from tutelage.models.generator import Generator
from tutelage.models.modes import eval_mode
from tutelage.models.tapped import Tapped

SAMPLES = 2000  # generated images per evaluation; constant, because the distance depends on their number
COMPONENTS = 64
SIDE = 16  # larger images are average-pooled to this side before their pixels are compared

Features = Callable[[Tensor], Tensor]


def frechet_distance(mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor) -> float:
    """Return |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)) of two normal distributions (Dowson, Landau 1982).

    This is the squared Wasserstein-2 distance. The trace of (C C')^(1/2) is that of (C^(1/2) C' C^(1/2))^(1/2),
    computed from eigenvalues in float64.

    Args:
        mean, other_mean: (D,).
        covariance, other_covariance: (D, D).

    Returns:
        In squared units of the features, at least 0.
    """
    mean, covariance, other_mean, other_covariance = (
        tensor.double() for tensor in (mean, covariance, other_mean, other_covariance)
    )
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    common = torch.linalg.eigvalsh(root @ other_covariance @ root).clamp(min=0).sqrt().sum()
    distance = (mean - other_mean).square().sum() + covariance.trace() + other_covariance.trace() - 2 * common
    return max(0.0, float(distance))


def frechet_distance_of(features: Tensor, others: Tensor) -> float:
    """Return the Fréchet distance of features (N, D) and (M, D) from their means and covariances (over N - 1)."""
    first, second = ((x.double().mean(0), x.double().T.cov()) for x in (features, others))
    return frechet_distance(*first, *second)


def inception_score(probabilities: Tensor) -> float:
    """Return exp E KL(p(y|x) || p(y)) of class probabilities (N, C): from 1 to C, higher is better.

    Salimans et al. 2016, arXiv 1606.03498. The probabilities may be those of any classifier, not only of Inception.
    """
    p = probabilities.double()
    terms = torch.special.xlogy(p, p) - torch.special.xlogy(p, p.mean(0))
    return float(terms.sum(1).mean().exp())


def coverage(real: Tensor, generated: Tensor, neighbours: int = 5) -> float:
    """Return the share of real samples (N, D) with a generated one (M, D) within the distance of their k-th neighbour.

    Naeem et al. 2020, arXiv 2002.09797. Neighbours are real samples. 1 if every mode is covered, even by few images.
    """
    radius = torch.cdist(real, real).kthvalue(min(neighbours + 1, len(real))).values  # a sample is its own nearest
    return float((torch.cdist(real, generated).amin(1) <= radius).double().mean())


@default_settings()
def evaluate_generator(
    generator: Generator,
    data: Data,
    *,
    split: str = "test",
    device: torch.device | str = "cpu",
    classifier: Tapped | None = None,
    teacher: Generator | None = None,
) -> dict[str, Any]:
    """Compare the images of a generator with the real images of a split.

    The distance is the Fréchet distance in the feature space named in the result. It is not FID, which uses features
    of Inception, and is comparable only with distances in the same space from the same number of samples.

    Args:
        generator: 2,000 images are generated, always from the same latents; it must be on ``device`` already.
        data: the data set.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        device: where to compute.
        classifier: on the same device; its embedding is the feature space. Without one, the feature space is the
            first 64 principal components of the split's pixels, average-pooled to at most 16 a side; it does not
            depend on conditions that change the training split.
        teacher: another generator, on the same device, to evaluate in the same way.

    Returns:
        ``samples``, ``features`` (describes the feature space), ``frechet_distance`` and ``coverage``; with a teacher
        also ``teacher_frechet_distance``; with a classifier also ``inception_score`` by that classifier.

    Raises:
        TutelageError: there is no such split, or the generator's images have another shape.
    """
    if split not in data.splits:
        raise unknown("split", split, data.splits)
    samples = data.splits[split]
    if classifier is None:
        features = _pixels(samples, device)
        space = f"the first {COMPONENTS} principal components of the {split} part's pixels"
    else:
        features = partial(_embedding, classifier)
        space = f"the embedding of a classifier, {type(classifier.module).__name__}"
    with torch.no_grad():
        real = torch.cat([features(batch.inputs) for batch in evaluation_batches(samples, device=device)])
    images = _images_of(generator, data)
    generated = _in_chunks(features, images)
    result: dict[str, Any] = {
        "samples": SAMPLES,
        "features": space,
        "frechet_distance": frechet_distance_of(generated, real),
        "coverage": coverage(real, generated),
    }
    if teacher is not None:
        teacher_features = _in_chunks(features, _images_of(teacher, data))
        result["teacher_frechet_distance"] = frechet_distance_of(teacher_features, real)
    if classifier is not None:
        with eval_mode(classifier):
            result["inception_score"] = inception_score(_in_chunks(classifier, images).softmax(1))
    return result


def _images_of(generator: Generator, data: Data) -> Tensor:
    images = generator.sample(SAMPLES, torch.Generator().manual_seed(0))
    if tuple(images.shape[1:]) != data.image_shape:
        raise TutelageError(
            f"the generator makes images of shape {tuple(images.shape[1:])}, but those of {data.name} have "
            f"{data.image_shape}; give a generator of images of this shape"
        )
    return images


def _in_chunks(features: Features, images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([features(chunk) for chunk in torch.split(images, 512)])


def _embedding(classifier: Tapped, images: Tensor) -> Tensor:
    with eval_mode(classifier):
        return classifier.tap(images, ("embedding",))["embedding"].flatten(1)


def _pixels(split: Split, device: torch.device | str) -> Features:
    """Return the projection onto a split's principal components; the mean, which cancels in distances, is kept."""
    pixels = torch.cat([_shrunk(batch.inputs) for batch in evaluation_batches(split, device=device)])
    _, vectors = torch.linalg.eigh(pixels.double().T.cov())
    axes = vectors[:, -COMPONENTS:]
    return lambda images: _shrunk(images).double() @ axes


def _shrunk(images: Tensor) -> Tensor:
    """Average-pool images so that no side is longer than 16, and flatten: (B, C, H, W) to (B, D)."""
    return F.avg_pool2d(images, math.ceil(max(images.shape[2:]) / SIDE), ceil_mode=True).flatten(1)
