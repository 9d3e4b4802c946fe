"""Attaching modules to layers without changing the network's own keys."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tutelage.models.attach import attach_after, attach_before, attach_parallel, detach, find_classifier, get_layer
from tutelage.models.load import make_model
from tutelage.models.tapped import Tapped

IMAGES = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def sequential() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 4))


def test_the_classifier_is_the_layer_that_returns_the_logits(tiny_model: Callable[..., Tapped]) -> None:
    assert find_classifier(tiny_model().module, IMAGES) == "fc"
    assert find_classifier(sequential(), IMAGES) == "3"
    for name in ("resnet8x0.25", "wrn-10-1"):
        network = make_model(name, num_classes=4, input_shape=(1, 8, 8)).module
        layer = network.get_submodule(find_classifier(network, IMAGES))
        assert isinstance(layer, nn.Linear)
        assert network.training


def test_a_network_without_a_linear_classifier_raises(refused: Any) -> None:
    with refused("classifier of Sequential", "1 linear layers", "nn.Linear"):
        find_classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Sigmoid()), IMAGES)


@pytest.mark.parametrize("attach", [attach_after, attach_before, attach_parallel])
def test_attached_modules_run_are_copied_and_can_be_detached(attach: Any) -> None:
    network = sequential()
    before, keys = network(IMAGES), set(network.state_dict())
    attach(network, "3", "extra", nn.Linear(4, 4))
    assert set(network.state_dict()) == keys | {"3.extra.weight", "3.extra.bias"}
    copied = copy.deepcopy(network)
    with torch.no_grad():
        copied[3].extra.weight.zero_()
    extra = network[3].extra
    body = network[:3](IMAGES)
    expected = {
        attach_after: lambda: extra(nn.functional.linear(body, network[3].weight, network[3].bias)),
        attach_before: lambda: nn.functional.linear(extra(body), network[3].weight, network[3].bias),
        attach_parallel: lambda: before,
    }[attach]()
    torch.testing.assert_close(network(IMAGES), expected)
    if attach is not attach_parallel:
        assert not torch.allclose(copied(IMAGES), network(IMAGES))  # a copy runs its own module
    detach(network, "3", "extra")
    assert set(network.state_dict()) == keys
    assert torch.equal(network(IMAGES), before)


def test_parallel_modules_can_be_tapped() -> None:
    network = sequential()
    attach_parallel(network, "3", "extra", nn.Linear(4, 1))
    outputs = Tapped(network, roles={"extra": "3.extra"}).tap(IMAGES, ("logits", "extra"))
    torch.testing.assert_close(outputs["extra"], network[3].extra(network[:3](IMAGES)))


def test_invalid_layers_and_names_raise(refused: Any) -> None:
    network = nn.Sequential(sequential())
    with refused("layer to attach to", "nowhere"):
        attach_after(network, "nowhere", "extra", nn.Identity())
    with refused("'0' is a Sequential"):
        attach_after(network, "0", "extra", nn.Identity())
    attach_after(network, "0.3", "extra", nn.Identity())
    with refused("a submodule 'extra' already"):
        attach_after(network, "0.3", "extra", nn.Identity())


def test_rewrapped_models_keep_normalisation_and_roles() -> None:
    model = Tapped(sequential(), [0.3], [0.7], roles={"hidden": "1"})
    model.trace(IMAGES)
    attach_parallel(model.module, "3", "extra", nn.Linear(4, 1))
    model.module.roles = {"extra": "3.extra"}  # type: ignore[assignment]
    rewrapped = model.rewrapped()
    assert rewrapped.module is model.module
    assert torch.equal(rewrapped.mean, model.mean)
    outputs = rewrapped.tap(IMAGES, ("hidden", "extra"))
    assert outputs["extra"].shape == (3, 1)
    assert torch.equal(outputs["hidden"], model.tap(IMAGES, ("hidden",))["hidden"])


def test_a_layer_of_another_type_raises(refused: Any) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    assert get_layer(network, "1", nn.Linear) is network[1]
    with refused("'1'", "Linear", "BatchNorm1d"):
        get_layer(network, "1", nn.BatchNorm1d)
