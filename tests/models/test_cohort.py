"""The networks of a cohort: copies with new weights, warnings and errors."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm

from tutelage.errors import TutelageWarning
from tutelage.models.cohort import CopyFactory, ModelFactory
from tutelage.models.load import make_model
from tutelage.models.tapped import Tapped


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def cohort(network: nn.Module, count: int = 3) -> list[Tapped]:
    make = CopyFactory(Tapped(network))
    return [make() for _ in range(count)]


def equal(a: nn.Module, b: nn.Module) -> list[str]:
    other_parameters = dict(b.named_parameters())
    return [name for name, value in a.named_parameters() if torch.equal(value, other_parameters[name])]


def norms() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.PReLU(), nn.Flatten(), nn.Linear(288, 10))


def attention() -> nn.Module:
    return nn.TransformerEncoderLayer(16, 4, 32)


def recurrent() -> nn.Module:
    return nn.GRU(16, 32)


def embedding() -> nn.Module:
    return nn.Embedding(100, 8, padding_idx=0)


def zoo(name: str) -> nn.Module:
    return make_model(name, num_classes=10, input_shape=(1, 8, 8)).module


@pytest.mark.parametrize("make", [mlp, norms, attention, recurrent, embedding])
def test_untrained_networks_are_reinitialised_without_a_warning(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    network = make()
    before = copy.deepcopy(network.state_dict())
    first, *copies = cohort(network)
    assert first.module is network
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    for other in copies:
        assert all((value == value.flatten()[0]).all() for name in equal(first, other) for value in [before[name[7:]]])
    assert set(equal(first, copies[0])) == set(equal(*copies))


@pytest.mark.parametrize("name", ["resnet8", "wrn-10-1"])
def test_copies_of_built_in_networks_equal_new_networks_of_the_same_seed(name: str) -> None:
    make = CopyFactory(Tapped(zoo(name)))
    make()
    torch.manual_seed(5)
    copied = make().module
    torch.manual_seed(5)
    new_network = zoo(name)
    assert all(torch.equal(value, copied.state_dict()[key]) for key, value in new_network.state_dict().items())


def test_false_warnings_are_rare() -> None:
    for seed in range(30):
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            cohort(nn.Sequential(nn.Conv2d(1, 16, 3), nn.Flatten(), nn.Linear(576, 64), nn.Linear(64, 10)))


@pytest.mark.parametrize("parametrisation", [weight_norm, spectral_norm, orthogonal])
@pytest.mark.parametrize("bias", [True, False])
def test_weights_that_no_reset_initialises_raise(parametrisation: Any, bias: bool, refused: Any) -> None:
    network = nn.Sequential(nn.Flatten(), parametrisation(nn.Linear(64, 10, bias=bias)))
    with refused("cohort", "'1.parametrizations.weight.original", "give a function that returns the network"):
        cohort(network)


class OwnParameter(nn.Module):
    def __init__(self, value: Tensor, trainable: bool = True) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 10)
        self.own = nn.Parameter(value, requires_grad=trainable)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(images.flatten(1))
        return logits + self.own.sum()


def test_a_random_parameter_outside_of_any_layer_raises(refused: Any) -> None:
    with refused("OwnParameter", "'own'", "give a function"):
        cohort(OwnParameter(torch.randn(4, 4)))
    for value in (torch.zeros(1, 1, 8), torch.ones(10), torch.tensor(0.5)):
        first, second = cohort(OwnParameter(value), 2)
        assert equal(first, second) == ["module.own"]
    assert equal(*cohort(OwnParameter(torch.randn(4), trainable=False), 2)) == ["module.own"]  # frozen parameters


def test_the_reset_of_the_network_runs_last() -> None:
    class Identity(OwnParameter):
        def reset_parameters(self) -> None:
            nn.init.eye_(self.own)
            nn.init.zeros_(self.fc.bias)

    network = Identity(torch.empty(4, 4))
    network.reset_parameters()
    first, second = cohort(network, 2)
    assert equal(first, second) == ["module.own", "module.fc.bias"]


def test_a_failing_reset_or_copy_raises(refused: Any) -> None:
    class FailingReset(OwnParameter):
        def reset_parameters(self, scale: float) -> None:
            raise AssertionError

    with refused("reset_parameters() of FailingReset fails", "'scale'", "give a function"):
        cohort(FailingReset(torch.zeros(1)))
    with pytest.warns(FutureWarning):
        old = nn.Sequential(nn.Flatten(), nn.utils.weight_norm(nn.Linear(64, 10)))
    with refused("Sequential cannot be copied", "give a function"):
        cohort(old)


def xavier(layer: nn.Linear) -> None:
    nn.init.xavier_uniform_(layer.weight)


def orthogonal_(layer: nn.Linear) -> None:
    nn.init.orthogonal_(layer.weight)


def small(layer: nn.Linear) -> None:
    nn.init.normal_(layer.weight, std=0.01)


def no_bias(layer: nn.Linear) -> None:
    nn.init.zeros_(layer.bias)


@pytest.mark.parametrize("initialise", [xavier, orthogonal_, small, no_bias])
def test_a_lost_initialisation_warns_once(initialise: Callable[[nn.Linear], None]) -> None:
    torch.manual_seed(0)
    network = mlp()
    initialise(network[1])
    with pytest.warns(TutelageWarning, match="other networks of this cohort.*'1.*lost.*give a function") as records:
        cohort(network, 4)
    assert len(records) == 1


@pytest.mark.parametrize("make", [mlp, norms])
def test_lost_training_warns_once(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    network = make()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for _ in range(20):
        images, labels = torch.rand(32, 1, 8, 8), torch.arange(32) % 10
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    with pytest.warns(TutelageWarning, match="training or initialisation is lost") as records:
        first, second, _ = cohort(network)
    assert len(records) == 1
    assert first.module is network
    assert not second.module.state_dict().get("1.running_mean", torch.zeros(1)).any()


def test_a_copy_starts_from_the_initial_state_of_the_first() -> None:
    network = OwnParameter(torch.ones(3))
    make = CopyFactory(Tapped(network))
    first = make()
    with torch.no_grad():
        first.module.get_parameter("own").fill_(7)
    assert torch.equal(make().module.get_parameter("own"), torch.ones(3))
    assert torch.equal(network.own, torch.full((3,), 7.0))


def test_a_network_changed_since_its_first_use_raises(refused: Any) -> None:
    network = mlp()
    make = CopyFactory(Tapped(network))
    make()
    network.append(nn.Linear(10, 10))
    with refused("was changed since its first use", "give a function"):
        make()


def test_a_single_network_is_not_copied() -> None:
    class Counted(OwnParameter):
        def __deepcopy__(self, memo: Any) -> Counted:
            raise AssertionError("copied")

    assert isinstance(CopyFactory(Tapped(Counted(torch.ones(1))))().module, Counted)


def test_a_function_that_returns_equal_weights_warns_once() -> None:
    network = mlp()
    make = ModelFactory(lambda: Tapped(copy.deepcopy(network)))
    with pytest.warns(TutelageWarning, match="the same weights each time") as records:
        assert len([make() for _ in range(4)]) == 4
    assert len(records) == 1
    make = ModelFactory(lambda: Tapped(mlp()))
    assert equal(make(), make()) == []
