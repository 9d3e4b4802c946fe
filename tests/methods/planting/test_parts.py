"""Planted units: where they can be added, that the function does not change, and what training leaves unchanged."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.conftest import TinyNet
from tutelage.evaluation.cost import parameters
from tutelage.methods.planting.parts import (
    OldAndNew,
    OldAndNewNorm,
    Planting,
    find_planting,
    join,
    new_parameters,
    plant,
    plantable,
)
from tutelage.models.groups import drop, groups
from tutelage.models.load import make_model
from tutelage.models.networks.wrn import WRN

IMAGES = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % 4


class Sequence(nn.Sequential):
    """Two layers of two units each, flattened maps, normalisations before and after."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 2, 3, padding=1, bias=False),
            nn.BatchNorm2d(2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(2, 3, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.BatchNorm1d(12),
            nn.Linear(12, 5),
            nn.GELU(),
            nn.Linear(5, 4),
        )


class Separable(nn.Sequential):
    """A depthwise convolution between two others."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 3, 3, stride=2),
            nn.Conv2d(3, 3, 3, groups=3),
            nn.BatchNorm2d(3),
            nn.Conv2d(3, 3, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(3, 4),
        )


class Summed(nn.Module):
    """Two layers whose outputs are added, before a normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(1, 3, 1, bias=False)
        self.norm, self.fc = nn.BatchNorm2d(3), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(F.relu(self.norm(self.one(x).relu() + self.other(x))).mean((2, 3)))
        return logits


class Joined(nn.Module):
    """Concatenated branches, maps that are flattened with channels last, and a view that assumes four channels."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 3, 3, stride=4, padding=1), nn.Conv2d(1, 2, 3, stride=4, padding=1)
        self.norm = nn.BatchNorm2d(5)
        self.last, self.fixed = nn.Conv2d(5, 4, 1), nn.Conv2d(5, 4, 1)
        self.fc, self.other = nn.Linear(16, 4), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(torch.cat([self.left(x), self.right(x)], 1)))
        fixed: Tensor = self.other(self.fixed(x).view(-1, 4, 4).flatten(1))
        logits: Tensor = self.fc(self.last(x).permute(0, 2, 3, 1).flatten(1))
        return logits + fixed


MAKE: list[Callable[[], nn.Module]] = [
    Sequence,
    Separable,
    Summed,
    Joined,
    lambda: TinyNet(width=2),
    lambda: WRN(10, 1, 4, in_channels=1),
]


def prepared(make: Callable[[], nn.Module]) -> nn.Module:
    """A network in eval mode with running statistics of two batches."""
    torch.manual_seed(0)
    network = make()
    for images in IMAGES.split(6):
        network(images)
    return network.eval()


def places(network: nn.Module) -> list[tuple[str, bool]]:
    """The layers that can get new units, alone or with others."""
    return [(name, coupled) for coupled in (False, True) for name in plantable(network, IMAGES, coupled=coupled)]


def planted(network: nn.Module, layer: str, count: int = 2, *, coupled: bool = False) -> tuple[nn.Module, Planting]:
    """A copy with new units in a layer."""
    separate = copy.deepcopy(network)
    planting = find_planting(separate, layer, count, IMAGES[:2], coupled=coupled)
    assert planting is not None
    plant(separate, planting, torch.Generator().manual_seed(1))
    return separate, planting


def train(network: nn.Module, make: Callable[..., torch.optim.Optimizer], steps: int = 6) -> None:
    """Some steps on the new parameters, with the other layers in eval mode."""
    names = new_parameters(network)
    trained = {name: parameter for name, parameter in network.named_parameters() if name in names}
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in names)
    optimizer = make(trained.values())
    for _ in range(steps):
        network.eval()
        for module in network.modules():
            if isinstance(module, OldAndNewNorm):
                module.new.train()
        optimizer.zero_grad()
        F.cross_entropy(network(IMAGES), LABELS).backward()
        optimizer.step()
    network.eval()


def test_where_units_can_be_planted() -> None:
    assert plantable(Sequence(), IMAGES) == ["0", "4", "8"]
    assert plantable(Joined(), IMAGES) == ["left", "right", "last"]  # the view of the other assumes its channels
    assert plantable(TinyNet(width=2), IMAGES) == ["conv1", "conv2"]
    inner = [f"block{number}.0.conv1" for number in (1, 2, 3)]  # the others are coupled by sums
    assert plantable(WRN(10, 1, in_channels=1), IMAGES) == inner
    network = make_model("resnet8x0.25", num_classes=4, input_shape=(1, 8, 8)).module
    assert plantable(network, IMAGES, coupled=True) == ["conv1"]  # with the last layer of the first block


def test_depthwise_convolutions_between() -> None:
    network = prepared(Separable)
    assert plantable(network, IMAGES) == ["0", "3"]
    separate, planting = planted(network, "0")
    assert list(planting.between) == ["1", "2"]
    assert separate[1].groups == 5  # type: ignore[index]
    join(separate, planting)
    assert (separate[1].groups, separate[1].in_channels) == (5, 5)  # type: ignore[index]


def test_normalisations_without_scales_and_other_layers_of_a_fixed_width_are_left_out() -> None:
    head = [nn.Flatten(), nn.Linear(3 * 64, 4)]
    assert plantable(nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), *head), IMAGES) == ["0"]
    for norm in (nn.BatchNorm2d(3, affine=False), nn.PReLU(3), nn.GroupNorm(3, 3)):
        assert plantable(nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), norm, *head), IMAGES) == []


def test_the_search_does_not_change_the_network(state_of: Any, changed: Any) -> None:
    network = prepared(Sequence).train()
    before, text = state_of(network), str(network)
    plantable(network, IMAGES)
    assert changed(before, state_of(network)) == set()
    assert str(network) == text
    assert all(module.training for module in network.modules())


@pytest.mark.parametrize("make", MAKE)
@pytest.mark.parametrize("count", [1, 3])
def test_planting_preserves_the_function_and_adds_the_parameters_of_the_formula(
    make: Callable[[], nn.Module], count: int
) -> None:
    network = prepared(make)
    assert places(network)
    for layer, coupled in places(network):
        separate, planting = planted(network, layer, count, coupled=coupled)
        added = 0
        for name, order in {**planting.layers, **planting.between}.items():
            tensors = [value for _, value in network.get_submodule(name).named_parameters()]
            added += (len(order) - len(tensors[0])) * sum(value[0].numel() for value in tensors)
        for name, order in planting.consumers.items():
            weight = network.get_parameter(f"{name}.weight")
            added += (len(order) - weight.shape[1]) * weight[:, 0].numel()
        assert parameters(separate) == parameters(network) + added
        for joined in (False, True):
            if joined:
                join(separate, planting)
            assert parameters(separate) == parameters(network) + added
            assert (separate(IMAGES) - network(IMAGES)).abs().max() < 1e-5


def test_parameters_of_a_convolution_between_others() -> None:
    separate, _ = planted(prepared(lambda: TinyNet(width=2)), "conv1", 3)
    # p (C_in k^2 + 2) + C_out' p k^2
    assert parameters(separate) - parameters(TinyNet(width=2)) == 3 * (1 * 9 + 2) + 4 * 3 * 9


@pytest.mark.parametrize("make", MAKE)
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.5),
    ],
)
def test_training_leaves_every_earlier_entry_and_buffer_in_every_bit(
    make: Callable[[], nn.Module], optimizer: Any, state_of: Any, changed: Any
) -> None:
    network = prepared(make)
    before = state_of(network)
    for layer, coupled in places(network):
        separate, planting = planted(network, layer, coupled=coupled)
        started = {name: value.detach().clone() for name, value in separate.named_parameters()}
        train(separate, optimizer)
        names = new_parameters(separate)
        assert changed(started, dict(separate.named_parameters())) == names
        outputs = separate(IMAGES)
        join(separate, planting)
        torch.testing.assert_close(separate(IMAGES), outputs, rtol=1e-6, atol=1e-6)
        assert list(separate.state_dict()) == list(network.state_dict())
        assert str(type(separate.get_submodule(layer))) == str(type(network.get_submodule(layer)))
        (group,) = (group for group in groups(separate, IMAGES[:2]) if layer in group.layers)
        drop(separate, group, range(group.units - 2, group.units))
        assert changed(before, state_of(separate)) == set()  # pruning the new units returns the parent


def test_the_gradient_reaches_the_consumers_first_and_then_the_filters() -> None:
    """If both sides were 0, no gradient would ever reach one of them."""
    separate, _ = planted(prepared(Sequence), "0")
    convolution, consumer = (separate.get_submodule(name).parametrizations.weight[0].new for name in ("0", "4"))  # type: ignore[index, union-attr]
    assert not consumer.any()  # type: ignore[operator]
    assert convolution.all()  # type: ignore[operator]
    F.cross_entropy(separate(IMAGES), LABELS).backward()
    assert not convolution.grad.any()  # type: ignore[operator, union-attr]
    assert consumer.grad.abs().max() > 1e-4  # type: ignore[operator, union-attr]
    with torch.no_grad():
        consumer.sub_(consumer.grad)  # type: ignore[operator, union-attr]
    F.cross_entropy(separate(IMAGES), LABELS).backward()
    assert convolution.grad.abs().max() > 1e-5  # type: ignore[operator, union-attr]


def test_new_filters_have_kaimings_variance() -> None:
    network = nn.Sequential(nn.Conv2d(8, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten(), nn.LazyLinear(2))
    network(torch.zeros(2, 8, 5, 5))
    planting = find_planting(network, "0", 500, torch.randn(2, 8, 5, 5))
    assert planting is not None
    plant(network, planting, torch.Generator().manual_seed(3))
    filters = network[0].parametrizations.weight[0].new.detach()  # type: ignore[index, union-attr]
    assert float(filters.var()) == pytest.approx(2 / 72, rel=0.03)
    assert abs(float(filters.mean())) < 0.003


def test_the_parts_of_a_normalisation_against_loops() -> None:
    """In training the existing channels have running statistics, and the new ones those of the batch."""
    order = torch.tensor([0, 3, 1, 2, 4])  # channels 1 and 4 are new
    old = nn.BatchNorm1d(3).double().eval()
    with torch.no_grad():
        for tensor in (old.weight, old.bias, old.running_mean, old.running_var):
            assert tensor is not None
            tensor.copy_(torch.rand(3, dtype=torch.float64) + 0.5)
    norm = OldAndNewNorm(old, order)
    norm.new.train()
    before = {name: value.clone() for name, value in old.state_dict().items()}
    x = torch.randn(6, 5, dtype=torch.float64)
    actual = norm(x)
    expected = torch.empty_like(x)
    for channel, number in enumerate(order.tolist()):
        values = x[:, channel].tolist()
        mean, variance, scale, shift = sum(values) / 6, 0.0, 1.0, 0.0
        variance = sum((value - mean) ** 2 for value in values) / 6
        if number < 3:
            mean, variance, scale, shift = (
                float(before[name][number]) for name in ("running_mean", "running_var", "weight", "bias")
            )
        for row, value in enumerate(values):
            expected[row, channel] = scale * (value - mean) / (variance + old.eps) ** 0.5 + shift
    torch.testing.assert_close(actual, expected)
    assert all(torch.equal(value, before[name]) for name, value in old.state_dict().items())
    assert norm.new.running_mean is not None
    torch.testing.assert_close(norm.new.running_mean, 0.1 * x[:, [1, 4]].mean(0))
    assert torch.autograd.gradcheck(norm, x.requires_grad_())


@pytest.mark.parametrize("dim", [0, 1])
def test_the_whole_tensor_against_loops(dim: int) -> None:
    shape, extra = [2, 3], [2, 3]
    extra[dim] = 2
    old, new = torch.rand(shape, dtype=torch.float64), torch.rand(extra, dtype=torch.float64)
    order = torch.randperm(shape[dim] + 2, generator=torch.Generator().manual_seed(2))
    whole = OldAndNew(new, dim, order)(old)
    for place, number in enumerate(order.tolist()):
        expected = old.select(dim, number) if number < shape[dim] else new.select(dim, number - shape[dim])
        assert torch.equal(whole.select(dim, place), expected)


def test_a_copy_trains_its_own_parts() -> None:
    separate, _ = planted(prepared(Sequence), "4")
    before = separate(IMAGES)
    other = copy.deepcopy(separate)
    train(other, lambda p: torch.optim.SGD(p, 0.5))
    assert not torch.equal(other(IMAGES), before)
    assert torch.equal(separate(IMAGES), before)
