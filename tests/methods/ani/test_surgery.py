"""Where adaptive noise is put, and networks with noise in files."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.runs.pairs import ImageNetStyle
from tests.token_network import TokenNetwork
from tutelage.data import Data
from tutelage.methods.ani.layer import AdaptiveNoise, silenced
from tutelage.methods.ani.operations.ani import mean_probabilities
from tutelage.methods.ani.surgery.ani import apply, remove
from tutelage.models.load import make_model
from tutelage.models.random_state import fixed_draws, is_random
from tutelage.models.surgery import applied_operations, reapply
from tutelage.models.tapped import Tapped
from tutelage.models.weights import load_weights, save_weights
from tutelage.tasks import evaluate

Refused = Callable[..., AbstractContextManager[None]]


def pixels(count: int = 6) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def places(network: nn.Module) -> dict[str, tuple[int, int]]:
    """The layers with noise, each with its channels and their axis."""
    return {
        name.removesuffix(".ani"): (module.sigma.numel(), module.axis)
        for name, module in network.named_modules()
        if isinstance(module, AdaptiveNoise)
    }


def plain_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4)
    )


def test_noise_follows_hidden_layers_or_their_batch_norm_and_not_the_classifier() -> None:
    network = apply(plain_network(), pixels(), scale=0.5)
    assert places(network) == {"0": (3, 1), "4": (5, 1)}
    style = apply(ImageNetStyle(), pixels(), scale=0.5)
    assert "bn1" in places(style)
    assert not {"conv1", "fc"} & places(style).keys()
    resnet = apply(make_model("resnet8x0.25", num_classes=4, input_shape=(1, 8, 8)).module, pixels(), scale=0.5)
    assert all("bn" in name for name in places(resnet))
    assert len(places(resnet)) == 7
    tokens = apply(TokenNetwork(), pixels(), scale=0.5)
    assert {axis for _, axis in places(tokens).values()} <= {1, 2}
    assert 2 in {axis for _, axis in places(tokens).values()}


def test_noise_is_before_the_activation() -> None:
    """Half of a rectified noisy zero is zero; noise after the activation would be negative at times."""
    network = apply(plain_network(), pixels(), scale=2.0).train()
    outputs: list[Tensor] = []
    network[1].register_forward_hook(lambda _layer, _inputs, output: outputs.append(output.detach()))  # type: ignore[index]
    network(pixels())
    assert outputs[0].min() == 0


def test_scale_0_is_the_network_itself_bit_for_bit(tiny_model: Callable[..., Tapped]) -> None:
    for network in (tiny_model().module, plain_network(), TokenNetwork()):
        before, keys = copy.deepcopy(network).eval(), list(network.state_dict())
        apply(network, pixels(), scale=0.0).eval()
        assert torch.equal(network(pixels()), before(pixels()))
        assert [key for key in network.state_dict() if ".ani." not in key] == keys


def test_it_can_be_silenced_and_removed(tiny_model: Callable[..., Tapped]) -> None:
    network = tiny_model().module
    before, keys = copy.deepcopy(network).eval(), list(network.state_dict())
    apply(network, pixels(), scale=0.5).eval()
    assert is_random(network)
    assert not torch.equal(network(pixels()), network(pixels()))
    with silenced(network):
        assert torch.equal(network(pixels()), before(pixels()))
    remove(network)
    assert torch.equal(network(pixels()), before(pixels()))
    assert list(network.state_dict()) == keys
    assert applied_operations(network) == []
    assert not is_random(network)


@pytest.mark.parametrize(
    "settings", [{}, {"per": "layer", "source": "batch"}, {"learnable": 1}], ids=["default", "layer", "learnable"]
)
def test_it_is_rebuilt_from_a_file(settings: dict[str, Any], tiny_model: Callable[..., Tapped], tmp_path: Path) -> None:
    network = apply(tiny_model(3).module, pixels(), scale=0.5, **settings)
    network.train()(pixels())
    save_weights(tmp_path / "w.safetensors", network.eval(), {"surgery": applied_operations(network)})
    rebuilt = reapply(tiny_model(5).module, applied_operations(network), pixels())
    load_weights(tmp_path / "w.safetensors", rebuilt)
    outputs = []
    for module in (network, rebuilt.eval()):
        with fixed_draws(module):
            outputs.append(module(pixels()))
    assert torch.equal(*outputs)


def test_invalid_settings_are_refused(tiny_model: Callable[..., Tapped], refused: Refused) -> None:
    network = tiny_model().module
    with refused("scale", "0 or more", "-1"):
        apply(network, pixels(), scale=-1)
    with refused("scale", "positive", "0"):
        apply(network, pixels(), scale=0, learnable=1)
    with refused("per of adaptive noise", "pixel", "channel"):
        apply(network, pixels(), scale=1, per="pixel")  # type: ignore[arg-type]
    with refused("source of adaptive noise", "test", "running"):
        apply(network, pixels(), scale=1, source="test")  # type: ignore[arg-type]
    with refused("no convolution or linear layer before its classifier"):
        apply(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), pixels(), scale=1)
    apply(network, pixels(), scale=1)
    with refused("'ani' already"):
        apply(network, pixels(), scale=1)


def test_the_metrics_are_those_of_single_draws_and_of_their_mean(
    tiny_model: Callable[..., Tapped], tiny_data: Data
) -> None:
    model = Tapped(apply(tiny_model().module, pixels(), scale=0.5), [0.5], [0.25]).eval()
    result = evaluate(model, tiny_data)
    images = tiny_data.test.inputs.permute(0, 3, 1, 2) / 255  # type: ignore[union-attr]
    draws = []
    for seed in range(10):
        with fixed_draws(model, seed), torch.no_grad():
            draws.append(model(images))
    correct = [float((logits.argmax(1) == tiny_data.test.labels).float().mean()) for logits in draws]
    assert result["accuracy"] == pytest.approx(correct[0])
    assert result["one_draw_accuracy"] == pytest.approx(sum(correct) / 10)
    assert result["one_draw_spread"] == pytest.approx(float(torch.tensor(correct).std()), abs=1e-6)
    mean = mean_probabilities(draws)
    torch.testing.assert_close(mean, sum(logits.softmax(1) for logits in draws) / 10)
    assert result["ten_draws_accuracy"] == pytest.approx(
        float((mean.argmax(1) == tiny_data.test.labels).float().mean())
    )
    assert evaluate(model, tiny_data) == result
