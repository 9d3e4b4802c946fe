"""The Beta mixture: closed checks, plain loops, and the probability that a label is noisy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import beta
from torch import Tensor

from tutelage.methods.drpl.mixture import EDGE, POINTS, BetaMixture, normalised, probability_noisy


def samples(seed: int = 0, count: int = 6000) -> Tensor:
    """0.6 Beta(2, 10) + 0.4 Beta(10, 2)."""
    generator = np.random.default_rng(seed)
    low, high = generator.beta(2, 10, round(0.6 * count)), generator.beta(10, 2, round(0.4 * count))
    return torch.from_numpy(np.concatenate([low, high]))


@pytest.mark.parametrize("seed", range(3))
def test_known_mixture_is_recovered(seed: int) -> None:
    values = samples(seed)
    mixture = BetaMixture.fit(values, iterations=30)
    assert mixture.mean.tolist() == pytest.approx([2 / 12, 10 / 12], abs=0.01)
    assert mixture.weight.tolist() == pytest.approx([0.6, 0.4], abs=0.01)
    assert mixture.alpha.tolist() == pytest.approx([2, 10], rel=0.15)
    brief = BetaMixture.fit(values)  # the authors' ten iterations have not converged
    assert brief.mean.tolist() == pytest.approx([2 / 12, 10 / 12], abs=0.045)
    assert brief.weight.tolist() == pytest.approx([0.6, 0.4], abs=0.05)


def reference_fit(values: list[float], iterations: int) -> list[tuple[float, float, float]]:
    """(alpha, beta, weight) of both components, by plain loops."""
    components = [(1.0, 2.0, 0.5), (2.0, 1.0, 0.5)]
    for _ in range(iterations):
        shares = []
        for x in values:
            densities = [w * float(beta.pdf(x, a, b)) for a, b, w in components]
            shares.append([density / sum(densities) for density in densities])
        components = []
        for k in (0, 1):
            total = sum(share[k] for share in shares)
            mean = sum(share[k] * x for share, x in zip(shares, values, strict=True)) / total
            variance = sum(share[k] * (x - mean) ** 2 for share, x in zip(shares, values, strict=True)) / total
            alpha = mean * (mean * (1 - mean) / variance - 1)
            components.append((alpha, alpha * (1 - mean) / mean, total / len(values)))
    return components


def test_fit_equals_plain_loops() -> None:
    values = samples(1, 60).clamp(EDGE, 1 - EDGE)
    mixture = BetaMixture.fit(values, iterations=4)
    expected = reference_fit(values.tolist(), 4)
    for k in (0, 1):
        fitted = (mixture.alpha[k], mixture.beta[k], mixture.weight[k])
        assert [float(value) for value in fitted] == pytest.approx(expected[k], rel=1e-9)


def test_posterior_equals_bayes_rule() -> None:
    mixture = BetaMixture(*(torch.tensor(pair, dtype=torch.float64) for pair in ([2.0, 6.0], [7.0, 3.0], [0.7, 0.3])))
    for x in (0.01, 0.3, 0.55, 0.98):
        densities = 0.7 * float(beta.pdf(x, 2, 7)), 0.3 * float(beta.pdf(x, 6, 3))
        posterior = mixture.posterior(torch.tensor([x], dtype=torch.float64))[:, 0]
        assert posterior.tolist() == pytest.approx([d / sum(densities) for d in densities], rel=1e-10)


def test_equal_start_is_the_mirror_of_itself() -> None:
    values = torch.tensor([0.1, 0.25, 0.75, 0.9], dtype=torch.float64)
    mixture = BetaMixture.fit(values)
    assert mixture.weight.tolist() == pytest.approx([0.5, 0.5], abs=1e-9)
    assert float(mixture.alpha[0]) == pytest.approx(float(mixture.beta[1]), rel=1e-9)


def test_table_does_not_fall_after_its_maximum() -> None:
    mixture = BetaMixture(*(torch.tensor(pair, dtype=torch.float64) for pair in ([0.8, 20.0], [0.9, 20.0], [0.5, 0.5])))
    grid = torch.linspace(EDGE, 1 - EDGE, POINTS, dtype=torch.float64)
    raw, table = mixture.posterior(grid)[1], mixture.table()
    peak = int(raw.argmax())
    assert 0 < peak < POINTS - 1  # the wide component wins at both ends
    assert raw[-1] < 0.1
    assert torch.equal(table[:peak], raw[:peak])
    assert (table[peak:] == raw.max()).all()


def test_losses_are_normalised_by_their_percentiles() -> None:
    losses = torch.arange(101).double()
    values, inner = normalised(losses)
    assert inner.nonzero()[:, 0].tolist() == list(range(5, 96))
    for loss in range(101):
        assert float(values[loss]) == pytest.approx(min(max((loss - 5) / 90, EDGE), 1 - EDGE))


def test_large_losses_are_noisy() -> None:
    generator = torch.Generator().manual_seed(0)
    losses = torch.cat([0.2 * torch.rand(700, generator=generator), 2 + torch.rand(300, generator=generator)])
    noisy = probability_noisy(losses)
    assert (noisy[:700] < 0.1).all()
    assert (noisy[700:] > 0.9).all()
    order = torch.randperm(1000, generator=generator)
    assert torch.allclose(probability_noisy(losses[order]), noisy[order])
    assert torch.allclose(probability_noisy(7 * losses + 3), noisy)  # percentiles remove scale and shift


@pytest.mark.parametrize("losses", [torch.zeros(50), torch.full((3,), math.pi), torch.tensor([0.0, 1.0])])
def test_losses_without_spread_have_a_probability(losses: Tensor) -> None:
    noisy = probability_noisy(losses)
    assert noisy.shape == losses.shape
    assert ((noisy >= 0) & (noisy <= 1)).all()
