"""Class densities: scipy's densities, linear discriminant analysis, and rejection."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from tutelage.attacks import Rejecting
from tutelage.data import Data, Split
from tutelage.data.modality import Vectors
from tutelage.methods.causes.densities import ClassDensities


def samples() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    means = np.array([[0.3, 0.5, 0.5], [0.5, 0.4, 0.6], [0.6, 0.6, 0.4]])
    return means[labels] + 0.08 * random.normal(size=(100, 3)), labels


def test_a_shared_covariance_is_linear_discriminant_analysis() -> None:
    inputs, labels = samples()
    oracle = LinearDiscriminantAnalysis(solver="lsqr", store_covariance=True).fit(inputs, labels)
    densities = ClassDensities(
        torch.from_numpy(oracle.means_)[:, None],
        torch.from_numpy(oracle.covariance_).expand(3, 1, 3, 3),
        torch.ones(3, 1),
        torch.from_numpy(oracle.priors_),
        torch.zeros(3),
        torch.eye(3),
    )
    points = np.random.default_rng(1).uniform(size=(200, 3))
    outputs = densities(torch.from_numpy(points))
    np.testing.assert_allclose(outputs.softmax(1).numpy(), oracle.predict_proba(points), atol=1e-9)
    assert (outputs.argmax(1).numpy() == oracle.predict(points)).all()


def test_fitted_densities_are_those_of_scipy() -> None:
    inputs, labels = samples()
    split = Split.of(torch.from_numpy(inputs).float(), torch.from_numpy(labels), Vectors())
    densities = ClassDensities.fitted(split)
    outputs = densities(split.inputs)  # type: ignore[arg-type]
    for label, prior in enumerate((0.5, 0.3, 0.2)):
        own = inputs[labels == label]
        oracle = multivariate_normal(own.mean(0), np.cov(own.T, bias=True))
        # scikit-learn adds a ridge to the variances
        np.testing.assert_allclose(outputs[:, label], oracle.logpdf(inputs) + np.log(prior), atol=1e-2)
    rejected = (outputs.amax(1) < densities.threshold).float().mean()
    assert float(rejected) == pytest.approx(0.01)
    assert densities(torch.full((1, 3), 5.0)).max() < densities.threshold
    decision = Rejecting(densities, densities.threshold)(torch.tensor([[0.3, 0.5, 0.5], [5.0, 5, 5]])).argmax(1)
    assert decision.tolist() == [0, 3]


def test_mixtures_describe_several_groups() -> None:
    """Two classes whose groups alternate on a line have nearly equal Gaussians, but different mixtures."""
    random = torch.Generator().manual_seed(0)
    group = torch.arange(200) % 4
    inputs = 0.05 + 0.3 * group[:, None] + 0.03 * torch.randn(200, 1, generator=random)
    split = Split.of(inputs, group % 2, Vectors())
    accuracies = [
        float((ClassDensities.fitted(split, mixture=mixture)(inputs).argmax(1) == group % 2).float().mean())
        for mixture in (1, 2)
    ]
    assert accuracies[0] < 0.8
    assert accuracies[1] == 1


def test_images_are_flattened_and_reduced(tiny_data: Data) -> None:
    images = ClassDensities.fitted(tiny_data.train, components=4)
    assert images.components.shape == (4, 64)
    assert images(torch.rand(3, 1, 8, 8)).shape == (3, 4)
