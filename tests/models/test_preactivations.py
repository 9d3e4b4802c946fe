"""Stages before the activation that ends them: found by tracing, declared by networks, and captured in any pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.models.networks import (
    INPUTS,
    ConvMixer,
    ImageNetResNet,
    SharedReLU,
    ViT,
    layers_of,
    mlp,
    tapped_network,
    vgg,
)
from tutelage.models.networks.mobilenetv2 import MobileNetV2
from tutelage.models.networks.resnet import ResNet
from tutelage.models.networks.shufflenetv2 import ShuffleNetV2
from tutelage.models.networks.wrn import WRN


class FunctionalReLU(nn.Module):
    """A block that ends in a function, which has no input to hook."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), _Activated())
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.block(x).mean((2, 3)))
        return y


class _Activated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x)
        return torch.relu(y)


def by_number(*layers: str) -> dict[str, str]:
    return {f"preactivation{number}": layer for number, layer in enumerate(layers, 1)}


EXPECTED: dict[str, tuple[Callable[[], nn.Module], dict[str, str]]] = {
    "resnet": (lambda: ResNet(14, 5), by_number(*(f"input:layer{n}.1.relu" for n in (1, 2, 3)))),
    "wrn": (lambda: WRN(10, 1, 5), by_number("block2.0.bn1", "block3.0.bn1", "bn")),
    "shufflenet v2": (
        lambda: ShuffleNetV2(5, width=0.5),
        by_number("input:layer1.3.relu", "input:layer2.7.relu", "input:layer3.3.relu"),
    ),
    "mobilenet, linear": (
        lambda: MobileNetV2(5, (3, 16, 16), 0.25),
        by_number("stages.1", "stages.2", "stages.4", "stages.6"),
    ),
    "vgg": (vgg, by_number("input:5", "input:9", "input:13")),
    "torchvision's resnet, whose ReLU runs twice": (
        ImageNetResNet,
        by_number("input:relu", "input:layer1.1.relu", "input:layer2.1.relu"),
    ),
    "vit": (ViT, by_number(*(f"blocks.{n}" for n in range(4)))),
    "mlp": (mlp, {}),
    "a function": (FunctionalReLU, by_number("block.0")),  # the second stage, block.1, has none
}


@pytest.mark.parametrize("name", EXPECTED)
def test_preactivations_are_found(name: str) -> None:
    make, expected = EXPECTED[name]
    assert layers_of(tapped_network(make), preactivations=True) == expected


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize("name", ["resnet", "vgg", "torchvision's resnet, whose ReLU runs twice", "mobilenet, linear"])
def test_a_stage_is_its_preactivation_activated(name: str, logits: bool, training: bool) -> None:
    """Also where the ReLU is in place, where it runs twice and where the pass stops early."""
    model = tapped_network(EXPECTED[name][0]).trace(INPUTS).train(training)
    for stage in model.stages[: len(EXPECTED[name][1])]:
        before = stage.replace("stage", "preactivation")
        outputs = model.tap(INPUTS, [before, stage, *(["logits"] if logits else [])])
        assert (outputs[before] < 0).any()
        expected = outputs[before] if name == "mobilenet, linear" else outputs[before].relu()
        assert torch.equal(outputs[stage], expected)
        alone = tapped_network(EXPECTED[name][0]).train(training).tap(INPUTS, [before])
        assert alone.logits is None
        torch.testing.assert_close(alone[before], outputs[before])


def test_gradients_of_a_preactivation_pass_an_activation_in_place() -> None:
    model = tapped_network(vgg).train()
    outputs = model.tap(INPUTS, ["logits", "preactivation1"])
    (outputs["preactivation1"].square().mean() + outputs["logits"].mean()).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_names_by_hand_take_precedence() -> None:
    roles = {"preactivation1": "block.1.norm", "stage1": "block.1"}
    assert layers_of(tapped_network(FunctionalReLU, roles), preactivations=True) == {"preactivation1": "block.1.norm"}
    manual = layers_of(tapped_network(vgg, {"stage7": "9"}), preactivations=True)
    assert manual == {"preactivation7": "input:9"}


def test_an_input_named_by_hand_is_captured_before_it_is_overwritten() -> None:
    outputs = tapped_network(vgg, {"before": "input:5"}).tap(INPUTS, ["before", "logits"])
    assert (outputs["before"] < 0).any()


def test_of_a_layer_that_runs_several_times_the_last_call_is_captured() -> None:
    model = tapped_network(SharedReLU, {"shared": "relu"})
    alone, both = (model.tap(INPUTS, roles)["shared"] for roles in (["shared"], ["shared", "logits"]))
    assert torch.equal(alone, both)


def test_mixer_blocks_end_in_their_last_layer() -> None:
    names = layers_of(tapped_network(lambda: ConvMixer(8)), preactivations=True)
    assert set(names) <= {f"preactivation{n}" for n in range(1, 5)}
