"""The regulariser, its proximal step, and the control of its weights."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from tests.methods.compact_cnn.test_resources import EXAMPLE, stages
from tutelage.methods.compact_cnn.control import Shrinkage
from tutelage.methods.compact_cnn.resources import Resources, norms_of, resources_of
from tutelage.methods.compact_cnn.shrinkage import ResourceLoss, shrunk
from tutelage.models.outputs import Outputs
from tutelage.models.zoo import build


def sequential() -> nn.Module:
    """Three convolutions with batch normalisation, at two resolutions."""
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((1, 4, 1), (4, 6, 2), (6, 5, 1)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3))


def random_scales(network: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data = 0.1 + torch.rand(module.num_features, generator=generator)
            module.weight.data[::2] *= -1
    return network


def make_loss(network: nn.Module, weights: list[float] | None = None, **options: Any) -> ResourceLoss:
    cost = resources_of(network, EXAMPLE, stages(network), options.pop("resource", "flops"))
    share = options.pop("target", 0.1)
    return ResourceLoss(
        network, cost, weights or [1.0] * len(cost.blocks), int(share * cost.total(cost.units)), **options
    )


def value(loss: ResourceLoss) -> Tensor:
    return loss(Outputs(torch.zeros(1, 1)), None, None)


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_proximal_step_minimises_its_objective(rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    values = torch.randn(rows, 5, generator=generator, dtype=torch.float64)
    for amount in (0.0, 0.3, 1.0, 9.0):
        result = shrunk(values, amount)

        def objective(x: Any, column: int, amount: float = amount) -> float:
            v = values[:, column].numpy()
            return float(0.5 * ((x - v) ** 2).sum() + amount * abs(x).max())

        for column in range(5):
            best = min(
                minimize(
                    objective, start, args=(column,), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12}
                ).fun
                for start in (values[:, column].numpy(), result[:, column].numpy() + 0.01)
            )
            assert objective(result[:, column].numpy(), column) <= best + 1e-9
    assert torch.equal(shrunk(values, 0.0), values)
    assert torch.equal(shrunk(values, 100.0), torch.zeros_like(values))


def test_one_value_is_thresholded_softly() -> None:
    torch.testing.assert_close(shrunk(torch.tensor([[0.5, -0.5, 0.1]]), 0.2), torch.tensor([[0.3, -0.3, 0.0]]))


def brute_force(cost: Resources, network: nn.Module, weights: list[float], alive: list[list[bool]]) -> float:
    """The definition, in loops over layers and units."""
    scales = []
    for group, flags in zip(cost.groups, alive, strict=True):
        scales.append(
            [
                max(
                    float(norm.weight.detach()[c].abs())
                    for norm, columns in norms_of(network, group)
                    for c in columns[unit]
                )
                if is_alive
                else 0.0
                for unit, is_alive in enumerate(flags)
            ]
        )
    counts = [sum(flags) for flags in alive]
    removed = [units - count for units, count in zip(cost.units, counts, strict=True)]
    total = 0.0
    for layer in cost.layers:
        inputs, outputs = layer.sizes(removed)
        of_inputs = sum(positions * sum(scales[group]) for group, positions in layer.of_inputs.items())
        of_outputs = sum(positions * sum(scales[group]) for group, positions in layer.of_outputs.items())
        total += weights[layer.block] * layer.product * (outputs * of_inputs + inputs * of_outputs)
        total += weights[layer.block] * layer.linear * of_outputs
    return total / cost.total(cost.units)


@pytest.mark.parametrize("name", ["sequential", "wrn-10-1"])
@pytest.mark.parametrize("resource", ["flops", "parameters"])
def test_loss_is_its_definition(name: str, resource: str) -> None:
    network = sequential() if name == "sequential" else build(name, num_classes=4, input_shape=(1, 8, 8))
    loss = make_loss(random_scales(network), resource=resource, proximal=False)
    weights = [0.5 + number for number in range(len(loss.weights))]
    loss.weights.copy_(torch.tensor(weights))
    loss.alive[::3] = False
    loss.shrink(0.0, 0)  # sets the scales of these units to 0
    alive = [part.tolist() for part in loss.alive.split(list(loss.resources.units))]
    assert float(value(loss).detach()) == pytest.approx(brute_force(loss.resources, network, weights, alive), rel=1e-5)


@pytest.mark.parametrize("resource", ["flops", "parameters"])
def test_gradient_by_a_scale_is_what_the_removal_of_the_unit_saves(resource: str) -> None:
    network = random_scales(sequential())
    loss = make_loss(network, resource=resource, proximal=False)
    value(loss).backward()
    units, whole = list(loss.resources.units), loss.resources.total(loss.resources.units)
    for group, name in enumerate(("1", "4", "7")):
        fewer = [count - (number == group) for number, count in enumerate(units)]
        saved = (whole - loss.resources.total(fewer)) / whole
        scale = network.get_parameter(f"{name}.weight")
        torch.testing.assert_close(scale.grad, saved * scale.detach().sign())
    closed_form = 2 * (64 * 9 * 1 + 16 * 9 * 6) / whole if resource == "flops" else (9 + 2 + 9 * 6) / whole
    assert float(network.get_parameter("1.weight").grad[1]) == pytest.approx(closed_form)  # type: ignore[index]


def test_blocks_without_weight_have_no_gradient() -> None:
    """The scales of a layer are in the cost of its own block and of that of the next layer."""
    network = random_scales(sequential())
    loss = make_loss(network, [1.0, 0.0, 0.0], proximal=False)
    assert loss.resources.blocks == ("stage1", "stage2", "last")
    value(loss).backward()
    gradients = [network.get_parameter(f"{name}.weight").grad for name in ("1", "4", "7")]
    assert [gradient is not None and bool(gradient.any()) for gradient in gradients] == [True, False, False]
    before = network.state_dict()["7.weight"].clone()
    proximal = make_loss(network, [1.0, 0.0, 0.0])
    first = network.state_dict()["1.weight"].clone()
    proximal.shrink(0.1, 0)
    assert torch.equal(network.state_dict()["7.weight"], before)
    weight = 2 * 64 * 9 / proximal.resources.total(proximal.resources.units)
    torch.testing.assert_close(network.state_dict()["1.weight"], shrunk(first[None], 0.1 * weight)[0])
    assert not value(proximal).requires_grad


def test_units_are_switched_off_for_good_and_loss_ends_at_the_target() -> None:
    network = random_scales(sequential())
    network.get_parameter("4.bias").data.fill_(0.3)
    loss = make_loss(network, target=0.6)
    step = 0
    while loss.resources.total(loss.counts()) > loss.target and step < 2000:
        loss.shrink(0.02, step)
        step += 1
    cost = loss.resources.total(loss.counts())
    assert 0.4 * loss.resources.total(loss.resources.units) < cost <= loss.target
    assert float(value(loss)) == 0
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    loss.shrink(0.02, step)
    assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())
    importance = torch.cat(loss.importance())
    assert torch.equal(importance >= 0, loss.alive)
    off = loss.switched_off[~loss.alive]
    assert torch.equal(off.argsort(stable=True), importance[~loss.alive].argsort(stable=True))  # the last one first
    for group, alive in zip(loss.resources.groups, loss.alive.split(list(loss.resources.units)), strict=True):
        for norm, columns in norms_of(network, group):
            dead = columns[~alive].flatten()
            norm.weight.data[dead], norm.bias.data[dead] = 1.0, 1.0  # as momentum would change them
    loss.shrink(0.02, step)
    assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())


def test_floor_remains() -> None:
    loss = make_loss(random_scales(sequential()), target=0.01, floor=3)
    for step in range(400):
        loss.shrink(0.05, step)
    assert loss.counts() == [3, 3, 3]
    assert bool((loss.scales()[loss.alive] > 0).all())


def test_weights_follow_the_cost() -> None:
    loss = make_loss(sequential(), [1.0, 2.0, 3.0], target=0.5)
    rule = Shrinkage(loss, rate=0.3, tolerance=0.05)
    assert not rule.after_epoch([{}])
    whole = loss.resources.total(loss.resources.units)
    expected = torch.tensor([1.0, 2.0, 3.0]) * math.exp(0.3 * (whole / loss.target - 1))
    torch.testing.assert_close(loss.weights, expected)
    assert rule.history == [
        {"epoch": 1, "cost": whole, "blocks": loss.resources.by_block([4, 6, 5]), "weights": [1.0, 2.0, 3.0]}
    ]
    loss.target = int(whole / 1.04)
    assert rule.after_epoch([{}, {}])
    restored = Shrinkage(loss, 0.3, 0.05)
    restored.load_state_dict(rule.state_dict())
    assert restored.history == rule.history


def test_weights_of_blocks_follow_their_own_cost() -> None:
    network = sequential()
    cost = resources_of(network, EXAMPLE, stages(network), "flops")
    goals = [int(share * value) for share, value in zip((0.5, 1.0, 0.8), cost.by_block(cost.units), strict=True)]
    loss = ResourceLoss(network, cost, [1.0] * 3, cost.constant + sum(goals), goals)
    Shrinkage(loss, rate=0.3, tolerance=0.05).after_epoch([{}])
    ratios = [value / goal for value, goal in zip(cost.by_block(cost.units), goals, strict=True)]
    torch.testing.assert_close(loss.weights, torch.tensor([math.exp(0.3 * (ratio - 1)) for ratio in ratios]))
    assert loss.resources.owners == (0, 1, 1)
    before = network.get_parameter("1.weight").clone()
    loss.targets[0] = 1.0
    loss.shrink(1.0, 0)  # the first layer is also in the cost of the second block, which exceeds its target
    assert torch.equal(before, network.get_parameter("1.weight"))
    assert bool((network.get_parameter("4.weight") < 1).all())
