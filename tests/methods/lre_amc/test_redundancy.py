"""Linear redundancy of units: least squares, exact relations and extreme activations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tutelage.methods.lre_amc.redundancy import eliminate, inverse, regression, residuals, without


def activations(rows: int = 60, units: int = 6, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, units, generator=generator, dtype=torch.float64).relu() + 0.1 * torch.arange(units)


def with_constant(z: Tensor) -> Tensor:
    return torch.cat([z, z.new_ones(len(z), 1)], 1)


def test_the_regressions_are_least_squares() -> None:
    z = with_constant(activations())
    remaining = inverse(z.T @ z)
    for unit in range(z.shape[1]):
        other_columns = [column for column in range(z.shape[1]) if column != unit]
        expected, *_ = np.linalg.lstsq(z[:, other_columns].numpy(), z[:, unit].numpy(), rcond=None)
        elimination = regression(remaining, unit)
        assert elimination[unit] == 0
        assert elimination[other_columns].numpy() == pytest.approx(expected, abs=1e-10)
        assert float(residuals(remaining)[unit]) == pytest.approx(
            float((z[:, unit] - z @ elimination).norm()), abs=1e-9
        )


def test_dependent_units_have_zero_residual() -> None:
    z = activations()
    z[:, 5] = z[:, 0] / 2 + z[:, 1] / 4
    elimination = residuals(inverse(z.T @ z, 1e-12))
    assert elimination[[0, 1, 5]].max() < 1e-5
    assert elimination[[2, 3, 4]].min() > 1


def test_exactly_predicted_units_are_removed_without_loss() -> None:
    z = activations()
    z[:, 5] = z[:, 0] / 2 + z[:, 1] / 4 - 3
    z = with_constant(z)
    elimination = eliminate(z.T @ z, 1, ridge=1e-11, units=6)
    assert elimination.removed[0] in (0, 1, 5)
    weights = torch.randn(4, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    after = weights @ elimination.transfer
    assert (after[:, list(elimination.removed)] == 0).all()
    assert (z @ after.T - z @ weights.T).abs().max() < 1e-10


def test_downdated_inverse_equals_new_regression() -> None:
    z = with_constant(activations(units=8))
    gram, ridge, removed = z.T @ z, 0.3, [2, 6, 0]
    remaining = inverse(gram, ridge)
    for number, unit in enumerate(removed, 1):
        remaining = without(remaining, unit)
        stays = [column for column in range(9) if column not in removed[:number]]
        new_inverse = inverse(gram[stays][:, stays], ridge)
        for row, column in enumerate(stays):
            assert torch.allclose(regression(remaining, column)[stays], regression(new_inverse, row), rtol=0, atol=1e-8)
            assert (regression(remaining, column)[removed[:number]] == 0).all()


def test_elimination_equals_new_regression_at_each_step() -> None:
    z = with_constant(activations(units=7, seed=3))
    gram, ridge = z.T @ z, 0.05
    elimination = eliminate(gram, 4, ridge=ridge, units=7)
    remaining = list(range(7))
    for removed in elimination.removed:
        energies = {}
        for unit in remaining:
            other_columns = [other for other in (*remaining, 7) if other != unit]
            # Ridge regression as ordinary least squares with additional rows.
            tall = torch.cat([z[:, other_columns], ridge**0.5 * torch.eye(len(other_columns), dtype=torch.float64)])
            expected = torch.cat([z[:, unit], torch.zeros(len(other_columns), dtype=torch.float64)])
            solution, *_ = np.linalg.lstsq(tall.numpy(), expected.numpy(), rcond=None)
            energies[unit] = float((expected - tall @ torch.from_numpy(solution)).norm())
        assert removed == min(energies, key=lambda unit: energies[unit])
        remaining.remove(removed)
    # The steps equal the regression of the removed units on the remaining ones.
    other_units, removed_units = [*remaining, 7], list(elimination.removed)
    penalized_gram = gram + ridge * torch.eye(8, dtype=torch.float64)
    at_once = torch.linalg.solve(
        penalized_gram[other_units][:, other_units], penalized_gram[other_units][:, removed_units]
    )
    assert torch.allclose(elimination.transfer[removed_units][:, other_units], at_once.T, atol=1e-9)
    assert torch.equal(elimination.transfer[other_units][:, other_units], torch.eye(4, dtype=torch.float64))


def test_constant_is_never_removed() -> None:
    z = torch.cat([torch.full((20, 3), 2.0, dtype=torch.float64), torch.ones(20, 1, dtype=torch.float64)], 1)
    elimination = eliminate(z.T @ z, 3, ridge=1e-9, units=3)
    assert sorted(elimination.removed) == [0, 1, 2]
    assert elimination.transfer[:3, 3].numpy() == pytest.approx(
        [2, 2, 2], abs=1e-6
    )  # each of them is twice the constant


def test_duplicate_units_need_a_ridge(refused: Any) -> None:
    z = activations()[:, [0, 1, 2, 0, 1, 2]]
    with refused("6 units", "linearly dependent", "use a larger ridge"):
        eliminate(z.T @ z, 2, ridge=0.0, units=6)
    elimination = eliminate(z.T @ z, 3, ridge=1e-6, units=6)
    assert {unit % 3 for unit in elimination.removed} == {0, 1, 2}  # one of each pair, not both
    assert elimination.transfer.isfinite().all()
    with refused("linearly dependent"):
        inverse(torch.zeros(3, 3))


def test_zero_activations() -> None:
    elimination = eliminate(torch.zeros(4, 4), 2, ridge=1e-30, units=4)
    assert elimination.removed == (0, 1)
    assert elimination.transfer.isfinite().all()
