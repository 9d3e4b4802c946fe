"""The virtual step: closed forms on quadratics, finite differences, and no change of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tutelage.models.tapped import Tapped
from tutelage.training.meta import virtual_step


class Scalar(nn.Module):
    """A scalar parameter and an unused parameter."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(value, dtype=torch.float64))
        self.unused = nn.Parameter(torch.ones(2))


def test_gradient_equals_the_closed_form_of_two_quadratics() -> None:
    """d/dtheta L_j(theta') = (1 - alpha)(theta - alpha (theta - a) - b): 1.89, where a first-order step has 2.7."""
    model, a, b = Scalar(2.0), 1.0, -1.0
    virtual_parameters = virtual_step(model, (model.theta - a) ** 2 / 2, 0.3)
    assert virtual_parameters["theta"].item() == pytest.approx(2 - 0.3)
    loss = (virtual_parameters["theta"] - b) ** 2 / 2
    assert torch.autograd.grad(loss, model.theta)[0].item() == pytest.approx(0.7 * 2.7)
    assert torch.equal(virtual_parameters["unused"], model.unused)
    assert model.theta.item() == 2
    assert model.theta.grad is None


def test_frozen_parameters_are_left_out() -> None:
    model = Scalar(2.0)
    model.unused.requires_grad_(False)
    assert list(virtual_step(model, model.theta**2, 0.1)) == ["theta"]


def test_virtual_step_equals_a_step_of_sgd(tiny_model: Callable[..., Tapped], state_of: Any, changed: Any) -> None:
    model = tiny_model().train()
    inputs, targets = torch.rand(6, 1, 8, 8), torch.arange(6) % 4
    loss = nn.functional.cross_entropy(model(inputs), targets)
    before = state_of(model)
    virtual_parameters = virtual_step(model, loss, 0.5)
    stepped_outputs = model.with_parameters(virtual_parameters, inputs)
    assert changed(before, state_of(model)) == set()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    loss.backward()
    optimizer.step()
    assert virtual_parameters.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(virtual_parameters[name], parameter, atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(stepped_outputs, model(inputs))


def test_gradients_through_the_step_equal_finite_differences() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    inputs, held_out = torch.randn(2, 5, 3, dtype=torch.float64).unbind()
    weights = torch.rand(5, dtype=torch.float64)

    def loss_after_step(weights: Tensor) -> Tensor:
        virtual_parameters = virtual_step(model, (weights * model(inputs).square().sum(1)).mean(), 0.3)
        loss: Tensor = torch.func.functional_call(model, virtual_parameters, (held_out,)).square().mean()
        return loss

    assert torch.autograd.gradcheck(loss_after_step, weights.requires_grad_())
