"""Which units are linear combinations of others: against least squares, exact relations, hostile activations."""

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
    left = inverse(z.T @ z)
    for unit in range(z.shape[1]):
        others = [column for column in range(z.shape[1]) if column != unit]
        expected, *_ = np.linalg.lstsq(z[:, others].numpy(), z[:, unit].numpy(), rcond=None)
        found = regression(left, unit)
        assert found[unit] == 0
        assert found[others].numpy() == pytest.approx(expected, abs=1e-10)
        assert float(residuals(left)[unit]) == pytest.approx(float((z[:, unit] - z @ found).norm()), abs=1e-9)


def test_units_in_a_relation_have_no_residual() -> None:
    z = activations()
    z[:, 5] = z[:, 0] / 2 + z[:, 1] / 4
    found = residuals(inverse(z.T @ z, 1e-12))
    assert found[[0, 1, 5]].max() < 1e-5
    assert found[[2, 3, 4]].min() > 1


def test_what_is_predicted_exactly_goes_without_loss() -> None:
    z = activations()
    z[:, 5] = z[:, 0] / 2 + z[:, 1] / 4 - 3
    z = with_constant(z)
    found = eliminate(z.T @ z, 1, ridge=1e-11, units=6)
    assert found.removed[0] in (0, 1, 5)
    weights = torch.randn(4, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    after = weights @ found.transfer
    assert (after[:, list(found.removed)] == 0).all()
    assert (z @ after.T - z @ weights.T).abs().max() < 1e-10


def test_after_a_removal_the_rest_is_a_fresh_regression() -> None:
    z = with_constant(activations(units=8))
    gram, ridge, gone = z.T @ z, 0.3, [2, 6, 0]
    left = inverse(gram, ridge)
    for number, unit in enumerate(gone, 1):
        left = without(left, unit)
        stays = [column for column in range(9) if column not in gone[:number]]
        fresh = inverse(gram[stays][:, stays], ridge)
        for place, column in enumerate(stays):
            assert torch.allclose(regression(left, column)[stays], regression(fresh, place), rtol=0, atol=1e-8)
            assert (regression(left, column)[gone[:number]] == 0).all()


def test_units_go_as_a_fresh_look_at_each_step_says() -> None:
    z = with_constant(activations(units=7, seed=3))
    gram, ridge = z.T @ z, 0.05
    found = eliminate(gram, 4, ridge=ridge, units=7)
    left = list(range(7))
    for removed in found.removed:
        energies = {}
        for unit in left:
            others = [other for other in (*left, 7) if other != unit]
            # The regression with its penalty, as ordinary least squares with further rows.
            tall = torch.cat([z[:, others], ridge**0.5 * torch.eye(len(others), dtype=torch.float64)])
            wanted = torch.cat([z[:, unit], torch.zeros(len(others), dtype=torch.float64)])
            solved, *_ = np.linalg.lstsq(tall.numpy(), wanted.numpy(), rcond=None)
            energies[unit] = float((wanted - tall @ torch.from_numpy(solved)).norm())
        assert removed == min(energies, key=lambda unit: energies[unit])
        left.remove(removed)
    # Step by step is as all at once: the regressions of the removed units on those that stay.
    stays, gone = [*left, 7], list(found.removed)
    penalised = gram + ridge * torch.eye(8, dtype=torch.float64)
    at_once = torch.linalg.solve(penalised[stays][:, stays], penalised[stays][:, gone])
    assert torch.allclose(found.transfer[gone][:, stays], at_once.T, atol=1e-9)
    assert torch.equal(found.transfer[stays][:, stays], torch.eye(4, dtype=torch.float64))


def test_the_constant_never_goes() -> None:
    z = torch.cat([torch.full((20, 3), 2.0, dtype=torch.float64), torch.ones(20, 1, dtype=torch.float64)], 1)
    found = eliminate(z.T @ z, 3, ridge=1e-9, units=3)
    assert sorted(found.removed) == [0, 1, 2]
    assert found.transfer[:3, 3].numpy() == pytest.approx([2, 2, 2], abs=1e-6)  # each of them is the constant, doubled


def test_copies_need_a_ridge(refused: Any) -> None:
    z = activations()[:, [0, 1, 2, 0, 1, 2]]
    with refused("6 units", "linearly dependent", "use a larger ridge"):
        eliminate(z.T @ z, 2, ridge=0.0, units=6)
    found = eliminate(z.T @ z, 3, ridge=1e-6, units=6)
    assert {unit % 3 for unit in found.removed} == {0, 1, 2}  # one of each pair, not both
    assert found.transfer.isfinite().all()
    with refused("linearly dependent"):
        inverse(torch.zeros(3, 3))


def test_activations_that_are_all_zero() -> None:
    found = eliminate(torch.zeros(4, 4), 2, ridge=1e-30, units=4)
    assert found.removed == (0, 1)
    assert found.transfer.isfinite().all()
