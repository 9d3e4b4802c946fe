"""Norm Loss: the loss, its gradient, the decoupled form, and the layers it acts on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tutelage.config import Recipe
from tutelage.methods.norm_loss.loss import (
    MIN_NORM,
    NormLoss,
    decoupled,
    norm_loss,
    pull,
    regularized_layers,
    unit_norms,
    unit_weights,
)
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.training.optim import make_optimizer

Net = Callable[..., Tapped]

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(5, 3),
    "1-d": lambda: nn.Conv1d(2, 4, 3),
    "2-d": lambda: nn.Conv2d(2, 4, 3),
    "3-d": lambda: nn.Conv3d(2, 3, 2),
    "grouped": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, groups=4),
    "transposed": lambda: nn.ConvTranspose2d(2, 5, 3),
    "transposed grouped": lambda: nn.ConvTranspose2d(4, 6, 3, groups=2),
    "channels last": lambda: nn.Conv2d(2, 4, 3).to(memory_format=torch.channels_last),  # type: ignore[call-overload]
}


def double(name: str) -> nn.Module:
    torch.manual_seed(1)
    return LAYERS[name]().double()


def weight_of(layer: nn.Module) -> nn.Parameter:
    assert isinstance(layer.weight, nn.Parameter)
    return layer.weight


def units_by_hand(layer: nn.Module) -> list[list[float]]:
    """The numbers that each output unit multiplies its inputs with, found by what the output depends on."""
    weight = weight_of(layer)
    if isinstance(layer, nn.ConvTranspose2d):
        per_group = layer.out_channels // layer.groups
        inputs = layer.in_channels // layer.groups
        return [
            weight[group * inputs : (group + 1) * inputs, output].flatten().tolist()
            for group in range(layer.groups)
            for output in range(per_group)
        ]
    return [weight[unit].flatten().tolist() for unit in range(len(weight))]


# --- the loss


@pytest.mark.parametrize("name", LAYERS)
def test_loss_equals_plain_loops(name: str) -> None:
    layer = double(name)
    norms = [math.sqrt(sum(value**2 for value in unit)) for unit in units_by_hand(layer)]
    assert unit_norms(unit_weights(layer)).flatten().tolist() == pytest.approx(norms, rel=1e-12)
    assert norm_loss(unit_weights(layer)).item() == pytest.approx(sum((1 - norm) ** 2 for norm in norms), rel=1e-12)


@pytest.mark.parametrize("name", ["transposed", "transposed grouped"])
def test_units_of_a_transposed_convolution_are_its_output_channels(name: str) -> None:
    """Without the weights of one unit, exactly one channel of the output is 0."""
    layer = double(name)
    inputs = torch.randn(1, layer.in_channels, 4, 4).double()  # type: ignore[arg-type]
    weights = unit_weights(layer)
    numbers = torch.arange(weights.shape[0] * weights.shape[1]).view(weights.shape[:2])
    for group, unit in ((0, 0), (weights.shape[0] - 1, weights.shape[1] - 1)):
        changed = double(name)
        with torch.no_grad():
            changed.bias.zero_()  # type: ignore[union-attr, operator]
            unit_weights(changed)[group, unit] = 0
        silent = (changed(inputs) == 0).all(dim=(0, 2, 3)).nonzero().flatten()
        assert silent.tolist() == [int(numbers[group, unit])]


@pytest.mark.parametrize("name", LAYERS)
def test_gradient_is_a_decay_with_a_coefficient_for_each_unit(name: str) -> None:
    layer, weight = double(name), 0.3
    (weight * norm_loss(unit_weights(layer))).backward()
    reference = double(name)
    rows = unit_weights(reference)
    expected = 2 * weight * (1 - 1 / unit_norms(rows)) * rows
    with torch.no_grad():
        rows.copy_(expected)  # a view: the gradient in the layout of the weight
    assert weight_of(layer).grad is not None
    assert (weight_of(layer).grad - weight_of(reference)).abs().max() < 1e-8  # type: ignore[operator]


@pytest.mark.parametrize("name", ["linear", "grouped", "transposed grouped"])
def test_gradient_is_that_of_finite_differences(name: str) -> None:
    layer = double(name)

    def loss(weight: Tensor) -> Tensor:
        copy = double(name)
        del copy.weight
        copy.weight = weight
        return norm_loss(unit_weights(copy))

    assert torch.autograd.gradcheck(loss, weight_of(layer).detach().requires_grad_())


def test_only_the_scaled_unit_has_another_loss() -> None:
    layer = double("2-d")
    before = (1 - unit_norms(unit_weights(layer))).square().flatten()
    with torch.no_grad():
        weight_of(layer)[2] *= 3
    after = (1 - unit_norms(unit_weights(layer))).square().flatten()
    assert (before != after).tolist() == [False, False, True, False]


def test_order_of_inputs_and_shape_of_kernels_do_not_matter() -> None:
    convolution = double("2-d")
    linear, permuted = nn.Linear(18, 4).double(), double("2-d")
    with torch.no_grad():
        linear.weight.copy_(weight_of(convolution).flatten(1))
        weight_of(permuted).copy_(weight_of(convolution).flip(1))
    expected = norm_loss(unit_weights(convolution)).item()
    assert norm_loss(unit_weights(linear)).item() == pytest.approx(expected, rel=1e-12)
    assert norm_loss(unit_weights(permuted)).item() == pytest.approx(expected, rel=1e-12)


def test_loss_is_a_sum_over_units_and_layers() -> None:
    first, second = double("2-d"), double("linear")
    parts = [norm_loss(unit_weights(layer)).item() for layer in (first, second)]
    assert norm_loss(unit_weights(first), unit_weights(second)).item() == pytest.approx(sum(parts))


@pytest.mark.parametrize("make", [lambda: nn.Linear(3000, 500), lambda: nn.Conv2d(300, 500, 3)])
def test_loss_of_the_default_initial_weights(make: Callable[[], nn.Module]) -> None:
    """Uniform with variance 1 / (3 fan-in): each norm is near 1 / sqrt(3), and the loss of a unit near 0.179."""
    torch.manual_seed(0)
    layer = make()
    assert norm_loss(unit_weights(layer)).item() / 500 == pytest.approx((1 - 1 / math.sqrt(3)) ** 2, rel=0.01)


def test_unit_of_zeros_stays_and_is_finite() -> None:
    layer = double("linear")
    with torch.no_grad():
        weight_of(layer)[1] = 0
    loss = norm_loss(unit_weights(layer))
    loss.backward()
    grad = weight_of(layer).grad
    assert grad is not None
    assert grad.isfinite().all()
    assert (grad[1] == 0).all()
    assert (1 - unit_norms(unit_weights(layer))).square().flatten()[1] == 1
    pull(layer, 0.1)
    assert (weight_of(layer)[1] == 0).all()
    assert weight_of(layer).isfinite().all()


def test_loss_is_computed_in_float32_under_autocast() -> None:
    layer = LAYERS["2-d"]()
    expected = norm_loss(unit_weights(layer))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(norm_loss(unit_weights(layer)), expected)


# --- steps


@pytest.mark.parametrize("form", ["coupled", "decoupled"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_step_multiplies_the_distance_from_norm_one(form: str, name: str) -> None:
    """1 - 2 x 0.1 x 0.01 = 0.998 without a gradient of the label loss; directions do not change."""
    layer = double(name)
    before = unit_weights(layer).detach().clone()
    recipe = Recipe(optimizer="SGD", lr=0.1, momentum=0, weight_decay=0)
    layers = {"weight": layer}
    if form == "coupled":
        optimizer = make_optimizer(recipe, layer.parameters())
        (0.01 * norm_loss(unit_weights(layer))).backward()
    else:
        optimizer = decoupled(recipe, layers, 0.01)(list(layer.parameters()))
        weight_of(layer).grad = torch.zeros_like(weight_of(layer))
    optimizer.step()
    after = unit_weights(layer).detach()
    torch.testing.assert_close(unit_norms(after) - 1, 0.998 * (unit_norms(before) - 1), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(after / unit_norms(after), before / unit_norms(before), rtol=1e-9, atol=1e-12)


def test_decoupled_form_is_bounded_near_zero() -> None:
    layer = nn.Linear(4, 1).double()
    with torch.no_grad():
        weight_of(layer).copy_(torch.full((1, 4), 5e-7))
    pull(layer, 1e-3)
    torch.testing.assert_close(
        weight_of(layer).detach(), torch.full((1, 4), 5e-7 * (1 - 2e-3 * (1 - 1 / MIN_NORM))).double()
    )


def test_adaptive_optimizer_does_not_see_the_decoupled_form() -> None:
    """Adam's step from a zero gradient is 0, and what remains is the pull with the current learning rate."""
    layer, reference = double("2-d"), double("2-d")
    recipe = Recipe(optimizer="Adam", lr=0.1, weight_decay=0)
    optimizer = decoupled(recipe, {"weight": layer}, 0.5)(list(layer.parameters()))
    for lr in (0.1, 0.02):
        optimizer.param_groups[0]["lr"] = lr
        weight_of(layer).grad = torch.zeros_like(weight_of(layer))
        optimizer.step()
        pull(reference, lr * 0.5)
    assert torch.equal(weight_of(layer), weight_of(reference))
    assert (optimizer.state[weight_of(layer)]["exp_avg"] == 0).all()


# --- layers


def test_layers_are_convolutions_and_linear_layers_with_a_trained_weight() -> None:
    network = nn.ModuleDict(
        {
            "conv": nn.Conv2d(1, 2, 3),
            "norm": nn.BatchNorm2d(2),
            "frozen": nn.Linear(2, 2).requires_grad_(False),
            "normed": torch.nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
            "table": nn.Embedding(3, 2),
            "fc": nn.Linear(2, 3),
            "tied": nn.Linear(2, 3),
        }
    )
    network["tied"].weight = network["fc"].weight
    assert list(regularized_layers(network)) == ["conv.weight", "fc.weight"]


def test_network_without_such_a_layer_is_refused(refused: Any) -> None:
    network = nn.Sequential(nn.Flatten(), torch.nn.utils.parametrizations.weight_norm(nn.Linear(64, 4)))
    with refused("Sequential", "no convolution or linear layer", "use another method"):
        regularized_layers(network)


def test_term_does_not_take_over_the_network(tiny_model: Net) -> None:
    term = NormLoss(regularized_layers(tiny_model().module))
    assert not list(term.parameters())
    assert not term.state_dict()
    assert term(Outputs(torch.zeros(2, 4))).shape == ()
