"""The operation ``skip``: units become their shortcuts, without weights, and nothing else changes."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models import residual_blocks as units
from tests.models.networks import ConvMixer, ImageNetResNet, ViT
from tests.models.test_export import needs_onnx
from tests.token_network import TokenNetwork
from tutelage.evaluation.cost import flops, parameters
from tutelage.models.attach import attach_after
from tutelage.models.export import export_onnx
from tutelage.models.load import make_model
from tutelage.models.roles import declared_roles
from tutelage.models.surgery import applied_operations, reapply
from tutelage.models.surgery.skip import apply, skippable
from tutelage.models.tapped import Tapped


def zoo(name: str) -> nn.Module:
    return make_model(name, num_classes=4, input_shape=(1, 8, 8)).module


def stages(*names: str, blocks: int) -> list[str]:
    return [f"{name}.{number}" for name in names for number in range(blocks)]


Case = tuple[Callable[[], nn.Module], list[str], str]

# A network, its units, and the layer whose zeros make a unit its shortcut.
CASES: dict[str, Case] = {
    "resnet": (lambda: zoo("resnet14x0.25"), stages("layer1", "layer2", "layer3", blocks=2), "bn2"),
    "wrn": (lambda: zoo("wrn-16-1"), stages("block1", "block2", "block3", blocks=2), "conv2"),
    "mobilenetv2": (
        lambda: zoo("mobilenetv2x0.5"),
        [
            f"stages.{s}.{n}"
            for s, n in [(1, 1), (2, 1), (2, 2), *[(3, n) for n in (1, 2, 3)], (4, 1), (4, 2), (5, 1), (5, 2)]
        ],
        "conv",
    ),
    "shufflenetv1": (
        lambda: zoo("shufflenetv1"),
        [f"layer{s}.{n}" for s, count in ((1, 3), (2, 7), (3, 3)) for n in range(1, count + 1)],
        "bn3",
    ),
    "torchvision": (ImageNetResNet, stages("layer1", "layer2", "layer3", "layer4", blocks=2), "bn2"),
    "timm": (lambda: units.network(units.Timm), stages("1", blocks=3), "se"),
    "written": (lambda: units.network(units.Written), stages("1", blocks=3), "last"),
    "preactivation": (lambda: units.network(units.Preactivation, False), stages("1", blocks=3), "conv2"),
    "convnext": (lambda: units.network(units.ConvNeXt, False), stages("1", blocks=3), "conv2"),
    "vit": (ViT, stages("blocks", blocks=4), "mlp,attention"),
    "mixer": (lambda: ConvMixer(2), ["blocks.0.0", "blocks.1.0"], "inner"),
    "tokens": (TokenNetwork, stages("blocks", blocks=4), "mlp,across"),
    "dense": (lambda: units.dense(False), stages("1", blocks=3), "conv2"),
    "dense, listed": (lambda: units.dense(True), ["1.layer1", "1.layer2", "1.layer3"], "conv2"),
}


@functools.cache
def built(name: str) -> tuple[nn.Module, Tensor]:
    """A network with non-trivial statistics, and images."""
    torch.manual_seed(0)
    make, _, _ = CASES[name]
    network = make()
    large = name in ("torchvision", "vit", "mixer")
    images = torch.randn(3, 3, 16, 16) if large else torch.randn(3, 1, 8, 8)
    network.train()(torch.cat([images, -images]))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.3)
    return network.eval(), images


def with_zeros(network: nn.Module, removed: list[str], layers: str) -> nn.Module:
    """The network, with zeros as the outputs of these layers of units."""

    def zero(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        return torch.zeros_like(output) if isinstance(output, Tensor) else (torch.zeros_like(output[0]), *output[1:])

    for unit in removed:
        for layer in layers.split(","):
            network.get_submodule(f"{unit}.{layer}").register_forward_hook(zero)
    return network


@pytest.mark.parametrize("name", CASES)
def test_units_are_found_without_changing_the_network(name: str, state_of: Any, changed: Any) -> None:
    network, images = built(name)
    before, random = state_of(network), torch.get_rng_state()
    assert skippable(network, images[:2]) == CASES[name][1]
    assert changed(before, state_of(network)) == set()
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module._forward_hooks or module.training for module in network.modules())


@pytest.mark.parametrize("name", CASES)
def test_a_unit_becomes_its_shortcut(name: str) -> None:
    network, images = built(name)
    _, names, layers = CASES[name]
    for removed in ([], names[:1], names[1:2], names[-2:], names):
        smaller = apply(copy.deepcopy(network), images[:2], units=removed)
        expected = with_zeros(copy.deepcopy(network), removed, layers)(images)
        assert torch.equal(smaller(images), expected)
        if removed:
            assert not torch.equal(expected, network(images))
            assert applied_operations(smaller) == [{"operation": "skip", "units": removed}]
        own = [key for key in network.state_dict() if not key.startswith(tuple(f"{unit}." for unit in removed))]
        remaining = smaller.state_dict()
        assert [key for key in remaining if key in own] == own
        assert set(remaining) <= set(network.state_dict())
        assert not any(
            f".{layer}." in key
            for unit in removed
            for layer in layers.split(",")
            for key in remaining
            if key.startswith(unit)
        )


@pytest.mark.parametrize("name", CASES)
def test_the_smaller_network_trains_and_is_built_again(name: str) -> None:
    network, images = built(name)
    make, names, _ = CASES[name]
    removed = names[::2]
    smaller = apply(copy.deepcopy(network), images[:2], units=removed).train()
    smaller(images).square().sum().backward()
    assert all(parameter.grad is not None for parameter in smaller.parameters())
    reopened = reapply(make(), applied_operations(smaller), torch.zeros_like(images[:2]))
    reopened.load_state_dict(smaller.state_dict())
    copied = copy.deepcopy(smaller)
    assert torch.equal(reopened.eval()(images), smaller.eval()(images))
    assert torch.equal(copied.eval()(images), smaller(images))
    assert applied_operations(copied) == applied_operations(reopened)


def test_in_stages() -> None:
    network, images = built("resnet")
    once = apply(copy.deepcopy(network), images[:2], units=["layer1.1", "layer2.0"])
    twice = apply(apply(copy.deepcopy(network), images[:2], units=["layer2.0"]), images[:2], units=["layer1.1"])
    assert torch.equal(once(images), twice(images))
    assert "layer2.0" not in skippable(twice, images)
    again = reapply(zoo("resnet14x0.25"), applied_operations(twice), images[:2])
    assert again.state_dict().keys() == once.state_dict().keys()


def test_parameters_and_operations_are_the_sum_of_the_remaining_units() -> None:
    network, images = built("resnet")
    smaller = apply(copy.deepcopy(network), images[:2], units=["layer1.0", "layer2.0", "layer3.1"])
    # Channels 4, 8 and 16 at 8x8, 4x4 and 2x2; two 3x3 convolutions with batch normalisation in each block.
    blocks = {"layer1": [(4, 4, 8), (4, 4, 8)], "layer2": [(4, 8, 4), (8, 8, 4)], "layer3": [(8, 16, 2), (16, 16, 2)]}
    remaining = [blocks["layer1"][1], blocks["layer2"][1], blocks["layer3"][0]]
    weights = [(9 * inputs * own + 9 * own * own, 4 * own, side) for inputs, own, side in remaining]
    assert parameters(smaller) == 9 * 4 + 2 * 4 + sum(size + norms for size, norms, _ in weights) + 16 * 4 + 4
    operations = 2 * (9 * 4 * 64 + sum(size * side**2 for size, _, side in weights) + 16 * 4)
    assert flops(smaller, images[:1]) == operations
    assert flops(apply(copy.deepcopy(network), images[:2], units=CASES["resnet"][1]), images[:1]) == 2 * (
        9 * 4 * 64 + 64
    )


def test_onnx(tmp_path: Path) -> None:
    onnxruntime = needs_onnx()
    torch.manual_seed(0)
    layers = {"one": units.NewChannels(8), "two": units.NewChannels(12)}
    body = [nn.Conv2d(1, 4, 3, padding=1), units.Timm(4, 4, 1), units.Written(4, 8, 2), units.DenseBlock(layers)]
    network = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    removed = ["1", "2", "3.one"]
    smaller = Tapped(apply(network, torch.zeros(2, 1, 8, 8), units=removed), [0.4], [0.3])
    export_onnx(smaller, (1, 8, 8), tmp_path / "student.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "student.onnx"), providers=["CPUExecutionProvider"])
    for batch in (1, 5):
        pixels = torch.rand(batch, 1, 8, 8)
        (logits,) = session.run(None, {"pixels": pixels.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), smaller.eval()(pixels).detach(), rtol=1e-5, atol=1e-5)


def test_modules_can_be_attached_to_a_skipped_unit() -> None:
    network, images = built("timm")
    smaller = apply(copy.deepcopy(network), images[:2], units=["1.1"])
    attach_after(smaller, "1.1", "scale", nn.Conv2d(8, 8, 1))
    copied = copy.deepcopy(smaller)
    assert torch.equal(copied(images), smaller(images))
    copied.get_submodule("1.1.scale").weight.data += 1  # type: ignore[operator, union-attr]
    assert not torch.equal(copied(images), smaller(images))


def test_roles_of_removed_layers_are_removed() -> None:
    network = zoo("shufflenetv2x0.5")
    images = torch.randn(2, 1, 8, 8)
    assert skippable(network, images) == []  # a unit that divides its channels has no path of all of them
    plain = skippable(network, images, plain=True)
    assert plain == [f"layer{s}.{n}" for s, count in ((1, 3), (2, 7), (3, 3)) for n in range(1, count + 1)]
    smaller = apply(copy.deepcopy(network), images, units=["layer1.3", "layer2.1"])
    assert declared_roles(network).keys() - declared_roles(smaller).keys() == {"preactivation1"}
    assert Tapped(smaller).tap(images, ("stage1", "stage3"))["stage1"].shape == (2, 48, 4, 4)
    assert declared_roles(network)["preactivation1"] == "input:layer1.3.relu"


def test_a_unit_without_a_path_becomes_the_identity() -> None:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.ReLU(inplace=True),
    ]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 4))
    images = torch.randn(3, 1, 8, 8)
    assert skippable(network, images) == []
    assert skippable(network, images, plain=True) == ["2"]
    expected = network[5](network[1](network[0](images)).flatten(1))
    smaller = apply(network, images, units=["2"]).train()
    assert torch.equal(smaller(images), expected)
    smaller(images).sum().backward()  # the second activation does not overwrite the result of the first
    assert [key for key in smaller.state_dict() if key.startswith("2.")] == []


class Ending(nn.Module):
    """A block with something after the sum."""

    def __init__(self, end: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 1)
        self.end = end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self, x)


ENDINGS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a function of the mode": lambda block, x: F.dropout(x + block.conv(x), 0.5, block.training),
    "a layer with a matrix": lambda block, x: block.other(x + block.conv(x)),
    "two paths of the same depth": lambda block, x: block.other(x) + block.conv(x),
    "no sum": lambda block, x: block.conv(x),
    "a product": lambda block, x: x * block.conv(x),
    "a smaller path": lambda block, x: x.mean((2, 3), keepdim=True) + block.conv(x),
    "a factor": lambda block, x: torch.add(block.conv(x), x, alpha=2),
    "the size of the batch": lambda block, x: x[:2].repeat(len(x), 1, 1, 1)[: len(x)] + block.conv(x),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_blocks_of_another_form_are_not_found(name: str) -> None:
    network = nn.Sequential(nn.Identity(), Ending(ENDINGS[name]))
    assert skippable(network, torch.randn(2, 1, 8, 8)) == []


def test_what_follows_the_sum_remains() -> None:
    end: Any = lambda block, x: torch.tanh(F.max_pool2d(x + block.conv(x), 2))  # noqa: E731
    images = torch.randn(2, 1, 8, 8)
    network = apply(nn.Sequential(nn.Identity(), Ending(end)), images, units=["1"])
    assert torch.equal(network(images), torch.tanh(F.max_pool2d(images, 2)))
    assert list(network.parameters()) == []


def test_wrong_units_are_refused(refused: Any) -> None:
    network, images = built("mobilenetv2")
    before = list(network.state_dict())
    with refused("unknown unit to skip 'stages.3.9'", "did you mean 'stages.3.", "Known: stages.1.1"):
        apply(network, images, units=["stages.3.1", "stages.3.9"])
    with refused("unit 'stages.1.0' of MobileNetV2 cannot be switched off", "(3, 8, 8, 8)", "a shape to the same"):
        apply(network, images, units=["stages.1.0"])
    for names in (["stages.1.1", "stages.1"], ["stages.1.1", "stages.1.1"]):
        with refused("'stages.1.1'", "removed twice"):
            apply(network, images, units=names)
    with refused("a list of units, got 'stages.1.1'", "[layer1.0]"):
        apply(network, images, units="stages.1.1")
    with refused("a list of units"):
        apply(network, images, units=[3])  # type: ignore[list-item]
    assert (list(network.state_dict()), applied_operations(network)) == (before, [])
