"""Covariance pooling: closed forms, an oracle in plain loops, gradients, degenerate maps and half precision."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tutelage.methods.mofs.pooling import CovariancePooling, covariance, matrix_sqrt


def maps(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def exact_root(matrices: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrices)
    return vectors @ torch.diag_embed(values.clamp(min=0).sqrt()) @ vectors.mT


def test_covariance_equals_plain_loops() -> None:
    x = maps(2, 3, 2, 4)
    result = covariance(x)
    for sample in range(2):
        rows = x[sample].flatten(1).tolist()
        means = [sum(row) / 8 for row in rows]
        for i in range(3):
            for j in range(3):
                value = sum((rows[i][m] - means[i]) * (rows[j][m] - means[j]) for m in range(8)) / 8
                assert float(result[sample, i, j]) == pytest.approx(value, rel=1e-12, abs=1e-15)


def test_root_equals_newton_schulz_in_plain_loops() -> None:
    matrix = covariance(maps(1, 3, 3, 3))[0].tolist()

    def product(a: list[list[float]], b: list[list[float]]) -> list[list[float]]:
        return [[sum(a[i][k] * b[k][j] for k in range(3)) for j in range(3)] for i in range(3)]

    trace = sum(matrix[i][i] for i in range(3))
    y, z = [[value / trace for value in row] for row in matrix], [[float(i == j) for j in range(3)] for i in range(3)]
    for _ in range(4):
        zy = product(z, y)
        p = [[1.5 * (i == j) - 0.5 * zy[i][j] for j in range(3)] for i in range(3)]
        y, z = product(y, p), product(p, z)
    expected = math.sqrt(trace) * torch.tensor(y, dtype=torch.float64)
    torch.testing.assert_close(matrix_sqrt(torch.tensor([matrix], dtype=torch.float64), 4)[0], expected)


@pytest.mark.parametrize(("iterations", "low", "high"), [(3, 0.25, 0.30), (5, 0.04, 0.07), (10, 0, 1e-11)])
def test_error_of_the_root_of_a_covariance_of_49_positions(iterations: int, low: float, high: float) -> None:
    matrices = covariance(maps(8, 16, 7, 7))
    root = exact_root(matrices)
    errors = (matrix_sqrt(matrices, iterations) - root).norm(dim=(1, 2)) / root.norm(dim=(1, 2))
    assert low <= float(errors.min()) <= float(errors.max()) <= high


@pytest.mark.parametrize("factor", [1e-12, 4.0, 1e12])
def test_root_scales_with_the_square_root(factor: float) -> None:
    matrices = covariance(maps(2, 5, 3, 3))
    scaled = matrix_sqrt(factor * matrices, 5) / math.sqrt(factor)
    torch.testing.assert_close(scaled, matrix_sqrt(matrices, 5))


def test_root_of_a_multiple_of_the_identity() -> None:
    identity = torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(matrix_sqrt(2.5 * identity[None], 12)[0], math.sqrt(2.5) * identity)


def test_many_iterations_stay_at_the_root_in_float32() -> None:
    matrices = covariance(maps(4, 16, 10, 10, dtype=torch.float32))
    expected = exact_root(matrices.double()).float()
    for iterations in (12, 20, 30):
        torch.testing.assert_close(matrix_sqrt(matrices, iterations), expected, rtol=1e-4, atol=1e-5)


def test_covariance_ignores_positions_and_offsets_and_the_mean_does_not() -> None:
    x = maps(3, 4, 5, 5)
    order = torch.randperm(25, generator=torch.Generator().manual_seed(1))
    shuffled = x.flatten(2)[:, :, order].view_as(x)
    shifted = x + torch.tensor([1.0, -2.0, 3.0, 100.0], dtype=x.dtype)[:, None, None]
    torch.testing.assert_close(covariance(shuffled), covariance(x))
    torch.testing.assert_close(covariance(shifted), covariance(x))
    torch.testing.assert_close(shuffled.mean((2, 3)), x.mean((2, 3)))
    assert ((shifted.mean((2, 3)) - x.mean((2, 3))).abs() > 0.9).all()


def test_a_large_mean_costs_little_precision() -> None:
    x = maps(2, 4, 8, 8, dtype=torch.float32)
    torch.testing.assert_close(covariance(x + 1000.0), covariance(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("size", [1, 3, 16])
def test_upper_triangle_of_a_symmetric_matrix(size: int) -> None:
    pooling, x = CovariancePooling(size, 5), maps(2, size, 4, 4)
    root = matrix_sqrt(covariance(x), 5)
    torch.testing.assert_close(root, root.mT, rtol=0, atol=1e-6)
    vectors = pooling(x)
    assert vectors.shape == (2, size * (size + 1) // 2)
    assert torch.equal(vectors, torch.stack([root[:, i, j] for i in range(size) for j in range(i, size)], 1))
    assert not pooling.state_dict()


@pytest.mark.parametrize("positions", [(5, 5), (2, 2)])  # the covariance of four positions is singular
def test_gradients(positions: tuple[int, int]) -> None:
    assert torch.autograd.gradcheck(CovariancePooling(4, 5), maps(2, 4, *positions).requires_grad_())


def test_a_singular_covariance_has_a_finite_root_and_gradient() -> None:
    x = maps(2, 256, 7, 7, dtype=torch.float32).requires_grad_()
    vectors = CovariancePooling(256, 5)(x)
    vectors.square().sum().backward()
    assert x.grad is not None
    assert vectors.isfinite().all()
    assert x.grad.isfinite().all()
    assert x.grad.any()


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_a_constant_map_gives_0_without_gradient(value: float) -> None:
    x = torch.full((2, 8, 4, 4), value, requires_grad=True)
    vectors = CovariancePooling(8, 5)(x)
    vectors.sum().backward()
    assert x.grad is not None
    assert torch.equal(vectors, torch.zeros_like(vectors))
    assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_maps_are_pooled_in_float32(dtype: torch.dtype) -> None:
    """Values of 10,000, whose squares float16 cannot hold, under autocast."""
    x = (1e4 * maps(2, 6, 5, 5)).to(dtype).requires_grad_()
    pooling = CovariancePooling(6, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        vectors = pooling(x)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors, pooling(x.detach().double()).float(), rtol=1e-4, atol=1.0)
    vectors.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_pooling_separates_what_means_cannot_and_the_reverse() -> None:
    """Least squares on pooled pixels: correlations of either sign with equal means, and shifted means."""
    generator = torch.Generator().manual_seed(3)

    def images(size: int, *, by_means: bool) -> tuple[Tensor, Tensor]:
        targets = torch.arange(size) % 2 * 2.0 - 1
        sign = targets[:, None, None]
        first, second = torch.randn(2, size, 12, 12, generator=generator)
        other = second + 0.5 * sign if by_means else 0.6 * sign * first + 0.8 * second
        return torch.stack([first, other], 1), targets

    def accuracy(pool: nn.Module, *, by_means: bool) -> float:
        (train, targets), (test, labels) = images(200, by_means=by_means), images(400, by_means=by_means)
        weights = torch.linalg.lstsq(torch.cat([pool(train), torch.ones(200, 1)], 1), targets[:, None]).solution
        predicted = (torch.cat([pool(test), torch.ones(400, 1)], 1) @ weights)[:, 0]
        return float((predicted * labels > 0).float().mean())

    means, covariances = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), CovariancePooling(2, 5)
    assert accuracy(covariances, by_means=False) == 1
    assert accuracy(means, by_means=True) == 1
    assert 0.4 < accuracy(means, by_means=False) < 0.6
    assert 0.4 < accuracy(covariances, by_means=True) < 0.6
