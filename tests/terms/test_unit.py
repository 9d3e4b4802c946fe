"""Normalisation to unit length: values and bounded gradients."""

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
def test_last_axis_has_unit_length(shape: tuple[int, ...]) -> None:
    inputs = vectors(*shape)
    rows = [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in inputs.view(-1, shape[-1]).tolist()]
    torch.testing.assert_close(unit(inputs), torch.tensor(rows, dtype=torch.float64).view(shape))


@pytest.mark.parametrize(
    ("length", "smallest", "result"),
    [(1e-6, 1e-6, 1), (0.99e-6, 1e-6, 0), (1e-9, 1e-12, 1), (1e-13, 1e-12, 0), (0.5, 0.6, 0), (0, 1e-6, 0)],
)
def test_short_vectors_become_zero(length: float, smallest: float, result: float) -> None:
    assert unit(torch.tensor([[length, 0]], dtype=torch.float64), smallest).tolist() == [[result, 0]]


def test_default_threshold_is_1e_minus_6() -> None:
    value = unit(torch.tensor([[1.1e-6], [0.9e-6]]))
    torch.testing.assert_close(value, torch.tensor([[1.0], [0.0]]))


@pytest.mark.parametrize("length", [0.0, 1e-9])
def test_short_vectors_have_no_gradient_and_others_do(length: float) -> None:
    """The gradient of ``F.normalize`` is 1e12 there."""
    slopes, direction = [], torch.tensor([[1.0, -2, 3], [1, -2, 3]]).double()
    for function in (unit, F.normalize):
        inputs = torch.tensor([[length, 0, 0], [1, 2, 2]], dtype=torch.float64, requires_grad=True)
        (function(inputs) * direction).sum().backward()
        assert inputs.grad is not None
        slopes.append(inputs.grad)
    gradients, torch_gradients = slopes
    assert gradients[0].tolist() == [0, 0, 0]
    assert torch_gradients[0].abs().max() > 1e8
    torch.testing.assert_close(gradients[1], torch_gradients[1])


def test_the_gradient_is_orthogonal_to_the_vector() -> None:
    inputs = vectors(5, 4).requires_grad_()
    (unit(inputs) * vectors(5, 4, seed=1)).sum().backward()
    assert inputs.grad is not None
    assert (inputs.grad * inputs).sum(1).abs().max() < 1e-12
    assert inputs.grad.norm(dim=1).min() > 1e-3


def test_gradcheck() -> None:
    assert torch.autograd.gradcheck(unit, vectors(2, 3, 4).requires_grad_())


def test_nan_is_propagated() -> None:
    """Masking a NaN would hide a broken network."""
    nan = float("nan")
    assert unit(torch.tensor([[nan, 1.0], [3, 4]])).isnan().tolist() == [[True, True], [False, False]]
