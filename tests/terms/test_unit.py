"""Directions: of length 1, and with a bounded slope where there is none."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.terms.unit import unit


def vectors(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_three_four_five() -> None:
    assert unit(torch.tensor([[3.0, -4], [0, 2]]).double()).tolist() == [[0.6, -0.8], [0, 1]]


@pytest.mark.parametrize("shape", [(3,), (4, 3), (2, 4, 3), (2, 2, 4, 3), (4, 1)])
def test_the_last_axis_gets_length_one_whatever_stands_before_it(shape: tuple[int, ...]) -> None:
    given = vectors(*shape)
    rows = [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in given.view(-1, shape[-1]).tolist()]
    torch.testing.assert_close(unit(given), torch.tensor(rows, dtype=torch.float64).view(shape))


@pytest.mark.parametrize(
    ("length", "smallest", "found"),
    [(1e-6, 1e-6, 1), (0.99e-6, 1e-6, 0), (1e-9, 1e-12, 1), (1e-13, 1e-12, 0), (0.5, 0.6, 0), (0, 1e-6, 0)],
)
def test_vectors_shorter_than_the_smallest_become_zero(length: float, smallest: float, found: float) -> None:
    assert unit(torch.tensor([[length, 0]], dtype=torch.float64), smallest).tolist() == [[found, 0]]


def test_the_smallest_is_a_millionth_unless_said_otherwise() -> None:
    value = unit(torch.tensor([[1.1e-6], [0.9e-6]]))
    torch.testing.assert_close(value, torch.tensor([[1.0], [0.0]]))


@pytest.mark.parametrize("length", [0.0, 1e-9])
def test_without_a_direction_there_is_no_gradient_and_that_of_the_others_stays(length: float) -> None:
    """``F.normalize`` has a slope of 1e12 there."""
    slopes, direction = [], torch.tensor([[1.0, -2, 3], [1, -2, 3]]).double()
    for function in (unit, F.normalize):
        given = torch.tensor([[length, 0, 0], [1, 2, 2]], dtype=torch.float64, requires_grad=True)
        (function(given) * direction).sum().backward()
        assert given.grad is not None
        slopes.append(given.grad)
    ours, theirs = slopes
    assert ours[0].tolist() == [0, 0, 0]
    assert theirs[0].abs().max() > 1e8
    torch.testing.assert_close(ours[1], theirs[1])


def test_the_gradient_is_orthogonal_to_the_vector() -> None:
    given = vectors(5, 4).requires_grad_()
    (unit(given) * vectors(5, 4, seed=1)).sum().backward()
    assert given.grad is not None
    assert (given.grad * given).sum(1).abs().max() < 1e-12
    assert given.grad.norm(dim=1).min() > 1e-3


def test_gradcheck() -> None:
    assert torch.autograd.gradcheck(unit, vectors(2, 3, 4).requires_grad_())


def test_what_is_not_a_number_stays_so() -> None:
    """A mask that hid it would keep a broken network from being reported."""
    nan = float("nan")
    assert unit(torch.tensor([[nan, 1.0], [3, 4]])).isnan().tolist() == [[True, True], [False, False]]
