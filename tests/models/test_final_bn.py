"""Final batch normalisation: its effect on logits and gradients, its removal and folding."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.methods.final_bn.surgery.final_bn import apply, fold, remove
from tutelage.models.surgery import applied_operations, reapply
from tutelage.models.tapped import Tapped

IMAGES = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(5))
LABELS = torch.arange(12) % 4


@pytest.fixture
def network(tiny_model: Callable[..., Tapped]) -> nn.Module:
    return tiny_model().module


def with_trained_norm(network: nn.Module) -> nn.Module:
    """Change running statistics, gamma and beta from their initial values."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        network.train()(IMAGES + torch.rand(1, generator=generator))
    for name, parameter in network.named_parameters():
        if "final_bn" in name:
            parameter.data += torch.randn(parameter.shape, generator=generator)
    return network


# --- in train mode


@pytest.mark.parametrize("scale", [0.01, 1.0, 1000.0])
def test_logits_have_mean_0_and_variance_1_over_the_batch(scale: float, network: Any) -> None:
    network.fc.weight.data *= scale
    plain = network(IMAGES)
    logits = apply(network, IMAGES, affine=0).train()(IMAGES)
    expected = plain.var(0, correction=0) / (plain.var(0, correction=0) + 1e-5)
    torch.testing.assert_close(logits.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(logits.var(0, correction=0), expected, atol=1e-4, rtol=1e-4)


def test_an_offset_of_a_logit_has_no_effect_and_no_gradient(network: Any) -> None:
    apply(network.double(), IMAGES.double()).train()
    logits = network(IMAGES.double())
    network.fc.bias.data += torch.tensor([5.0, -3.0, 0.0, 100.0])
    shifted_logits = network(IMAGES.double())
    torch.testing.assert_close(shifted_logits, logits)
    F.cross_entropy(shifted_logits, LABELS).backward()
    torch.testing.assert_close(network.fc.bias.grad, torch.zeros(4).double(), atol=1e-12, rtol=0)
    assert network.fc.weight.grad.any()


def test_the_scale_of_a_logit_has_no_effect(network: Any) -> None:
    network.double()
    network.fc.weight.data *= 100  # so that eps is negligible
    logits = apply(network, IMAGES.double()).train()(IMAGES.double())
    for parameter in (network.fc.weight, network.fc.bias):
        parameter.data[2] *= 7
    torch.testing.assert_close(network(IMAGES.double()), logits, atol=1e-4, rtol=0)


def test_equal_logits_become_0() -> None:
    network = apply(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), IMAGES, affine=0).train()
    logits = network(IMAGES[:1].expand(8, -1, -1, -1))
    torch.testing.assert_close(logits, torch.zeros(8, 2), atol=1e-4, rtol=0)
    loss = F.cross_entropy(logits, LABELS[:8] % 2)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2), abs=1e-4)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_a_batch_of_one_raises_the_error_of_torch(network: nn.Module) -> None:
    apply(network, IMAGES)
    with pytest.raises(ValueError, match="more than 1 value"):
        network.train()(IMAGES[:1])
    assert network.eval()(IMAGES[:1]).shape == (1, 4)


def test_penultimate_position_normalises_the_features(network: Any) -> None:
    apply(network, IMAGES, position="penultimate", affine=0)
    features: list[Tensor] = []
    network.fc.register_forward_pre_hook(lambda _layer, inputs: features.append(inputs[0]))
    network.train()(IMAGES)
    torch.testing.assert_close(features[0].mean(0), torch.zeros(8), atol=1e-5, rtol=0)
    assert network.fc.final_bn.num_features == 8


@pytest.mark.parametrize("momentum", [0.01, 0.1])
def test_running_statistics_after_n_batches(momentum: float, network: Any) -> None:
    plain = network.train()(IMAGES)
    apply(network, IMAGES, momentum=momentum).train()
    for _ in range(5):
        network(IMAGES)
    weight = 1 - (1 - momentum) ** 5
    torch.testing.assert_close(network.fc.final_bn.running_mean, weight * plain.mean(0))
    torch.testing.assert_close(network.fc.final_bn.running_var, (1 - weight) + weight * plain.var(0))


# --- removing and folding


@pytest.mark.parametrize("position", ["logits", "penultimate"])
@pytest.mark.parametrize("affine", [0, 1])
@pytest.mark.parametrize("bias", [True, False])
def test_folding_preserves_logits(position: str, affine: int, bias: bool, network: Any, state_of: Any) -> None:
    network.fc = nn.Linear(8, 4, bias=bias)
    keys = dict(network.state_dict())
    with_trained_norm(apply(network, IMAGES, position=position, affine=affine)).eval()
    before = state_of(network)
    plain = fold(network)
    torch.testing.assert_close(plain(IMAGES), network(IMAGES), atol=1e-6, rtol=1e-6)
    assert set(plain.state_dict()) == {*keys, "fc.bias"}
    assert type(plain.fc) is nn.Linear
    assert applied_operations(plain) == []
    assert all(torch.equal(value, before[name]) for name, value in state_of(network).items())
    assert applied_operations(network)  # the original is unchanged
    network_without_layer = copy.deepcopy(network)
    remove(network_without_layer)
    assert not torch.allclose(network_without_layer(IMAGES), network(IMAGES), atol=1e-2)


@pytest.mark.parametrize("position", ["logits", "penultimate"])
def test_remove_restores_the_network(position: str, network: Any, state_of: Any, changed: Any) -> None:
    before, text = state_of(network), repr(network)
    expected = network.eval()(IMAGES)
    apply(network, IMAGES, position=position)
    assert set(network.state_dict()) - before.keys() == {
        f"fc.final_bn.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }
    norm = remove(network)
    assert isinstance(norm, nn.BatchNorm1d)
    assert changed(before, state_of(network)) == set()
    assert repr(network) == text
    assert torch.equal(network(IMAGES), expected)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    assert applied_operations(network) == []
    apply(network, IMAGES)  # it can be applied again


@pytest.mark.parametrize("settings", [{}, {"position": "penultimate", "momentum": 0.01, "affine": 0}])
def test_it_is_rebuilt_with_its_settings(settings: dict[str, Any], network: Any, tiny_model: Any) -> None:
    with_trained_norm(apply(network, IMAGES, **settings)).eval()
    rebuilt: Any = reapply(tiny_model(3).module, applied_operations(network), IMAGES)
    rebuilt.load_state_dict(network.state_dict())
    assert torch.equal(rebuilt.eval()(IMAGES), network(IMAGES))
    for name in ("momentum", "affine", "num_features"):
        assert getattr(rebuilt.fc.final_bn, name) == getattr(network.fc.final_bn, name)
    copied = copy.deepcopy(network)
    assert torch.equal(copied(IMAGES), network(IMAGES))


@pytest.mark.parametrize(
    ("settings", "pieces"),
    [
        ({"position": "logit"}, ("position", "'logit'", "'logits'")),
        ({"momentum": 0.0}, ("momentum", "(0, 1]", "0.1")),
        ({"momentum": 1.5}, ("momentum", "1.5")),
        ({"momentum": float("nan")}, ("momentum", "nan")),
    ],
)
def test_invalid_settings_raise(settings: dict[str, Any], pieces: Any, network: nn.Module, refused: Any) -> None:
    with refused(*pieces):
        apply(network, IMAGES, **settings)


def test_unsupported_networks_raise(network: nn.Module, refused: Any) -> None:
    with refused("TinyNet has no final batch normalisation", "method=final_bn"):
        fold(network)
    with refused("TinyNet has no final batch normalisation"):
        remove(network)
    apply(network, IMAGES)
    with refused("has a submodule 'final_bn' already"):
        apply(network, IMAGES)
    with refused("classifier", "Sequential"):
        apply(nn.Sequential(nn.Conv2d(1, 4, 8), nn.Flatten()), IMAGES)
