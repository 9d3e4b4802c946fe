"""Roles: found by tracing and named by hand, and the features that they give."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.networks import (
    INPUTS,
    MEAN,
    STD,
    ConvMixer,
    ImageNetResNet,
    SharedReLU,
    ViT,
    captured_by_hooks,
    fully_convolutional,
    hooks,
    layers_of,
    mlp,
    tapped_network,
    vgg,
    weight_normed,
)
from tutelage.models.networks.resnet import ResNet
from tutelage.models.networks.wrn import WRN
from tutelage.models.tapped import Tapped

# --- found by tracing

EXPECTED_ROLES: dict[str, tuple[Callable[[], nn.Module], dict[str, str]]] = {
    "resnet": (
        lambda: ResNet(8, 5),
        {"stem": "input:layer1", "stage1": "layer1", "stage2": "layer2", "stage3": "layer3", "embedding": "input:fc"},
    ),
    "wrn": (
        lambda: WRN(10, 1, 5),
        {"stem": "conv1", "stage1": "block1", "stage2": "block2", "stage3": "block3", "embedding": "input:fc"},
    ),
    "vgg": (vgg, {"stem": "0", "stage1": "5", "stage2": "9", "stage3": "13", "embedding": "input:17"}),
    "imagenet resnet": (  # stages of 8x8, 4x4 and 2x2; layer4 has one pixel
        ImageNetResNet,
        {"stem": "conv1", "stage1": "relu", "stage2": "layer1", "stage3": "layer2", "embedding": "input:fc"},
    ),
    "vit": (
        ViT,
        {f"stage{i}": f"blocks.{i - 1}" for i in range(1, 5)} | {"stem": "patches", "embedding": "input:head"},
    ),
    "vit of eight blocks": (
        lambda: ViT(8),
        {f"stage{i}": f"blocks.{2 * i - 1}" for i in range(1, 5)} | {"stem": "patches", "embedding": "input:head"},
    ),
    "convmixer": (
        lambda: ConvMixer(8),
        {f"stage{i}": f"blocks.{2 * i - 1}" for i in range(1, 5)} | {"stem": "stem.0", "embedding": "input:head.2"},
    ),
    "convmixer of three blocks": (  # as many blocks as layers in a block
        lambda: ConvMixer(3),
        {f"stage{i}": f"blocks.{i - 1}" for i in range(1, 4)} | {"stem": "stem.0", "embedding": "input:head.2"},
    ),
    "mlp": (mlp, {"embedding": "input:5"}),
    "shared relu": (SharedReLU, {"stage1": "conv1", "stage2": "conv3", "embedding": "input:fc"}),
    "weight norm": (weight_normed, {"stage1": "0", "embedding": "input:3"}),
}
every_network = pytest.mark.parametrize(("make", "layers"), EXPECTED_ROLES.values(), ids=EXPECTED_ROLES.keys())


@every_network
def test_roles_are_found_by_tracing(make: Callable[[], nn.Module], layers: dict[str, str]) -> None:
    model = tapped_network(make)
    assert layers_of(model) == dict(sorted(layers.items()))
    assert model.stages == tuple(role for role in sorted(layers) if role not in ("stem", "embedding"))
    assert model.maps == (("stem",) if "stem" in layers else ()) + model.stages


@every_network
@pytest.mark.parametrize("training", [False, True])
def test_captured_features_equal_layer_inputs_and_outputs(
    make: Callable[[], nn.Module], layers: dict[str, str], training: bool
) -> None:
    model = tapped_network(make).train(training)
    expected = captured_by_hooks(copy.deepcopy(model), layers)
    outputs = model.tap(INPUTS, ["logits", *layers])
    assert outputs.features.keys() == layers.keys()
    for role, value in expected.items():
        tensor = outputs[role]
        if value.ndim == 3:  # tokens; their order is tested below
            tensor = tensor.flatten(2).transpose(1, 2)
            value = value[:, 1:]  # noqa: PLW2901
        assert torch.equal(tensor, value), role


@pytest.mark.parametrize("sides", [(64, 64), (48, 80)])
def test_stages_and_shapes_of_an_imagenet_resnet(sides: tuple[int, int]) -> None:
    model = tapped_network(ImageNetResNet)
    inputs = torch.rand(2, 3, *sides)
    outputs = model.tap(inputs, ("stage1", "stage2", "stage3", "stage4", "stage5", "embedding"))
    layers = {role: str(tap) for role, tap in model.taps.items() if role.startswith("stage")}
    assert list(layers.values()) == ["relu", "layer1", "layer2", "layer3", "layer4"]
    shapes = [tuple(outputs[role].shape) for role in model.stages]
    expected = [(2, c, sides[0] // s, sides[1] // s) for c, s in ((4, 2), (4, 4), (6, 8), (8, 16))]
    assert shapes[:4] == expected
    assert shapes[4] == (2, 10, *(-(-side // 32) for side in sides))
    torch.testing.assert_close(outputs["embedding"], outputs["stage5"].mean((2, 3)))


def test_resnet_features_equal_layer_by_layer_computation() -> None:
    model = tapped_network(lambda: ResNet(8, 5)).eval()
    net, x = model.module, (INPUTS - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    assert isinstance(net, ResNet)
    x = F.relu(net.bn1(net.conv1(x)))
    stages = [x := net.layer1(x), x := net.layer2(x), x := net.layer3(x)]
    outputs = model.tap(INPUTS, ("logits", "stage1", "stage2", "stage3", "embedding"))
    for role, value in zip(("stage1", "stage2", "stage3"), stages, strict=True):
        torch.testing.assert_close(outputs[role], value)
    torch.testing.assert_close(outputs["embedding"], x.mean((2, 3)))
    torch.testing.assert_close(outputs["logits"], net.fc(x.mean((2, 3))))


@pytest.mark.parametrize("prefix", [1, 5])
def test_tokens_become_maps_of_their_patch_grid(prefix: int) -> None:
    model = tapped_network(lambda: ViT(4, prefix)).eval()
    inputs = torch.rand(2, 3, 8, 12)  # 2 x 3 patches
    tokens: list[Tensor] = []
    block = model.module.get_submodule("blocks.1")
    with block.register_forward_hook(lambda _, __, out: tokens.append(out)):
        model(inputs)
    outputs = model.tap(inputs, ("stage2",))["stage2"]
    assert outputs.shape == (2, 8, 2, 3)
    for y in range(2):
        for x in range(3):
            assert torch.equal(outputs[:, :, y, x], tokens[0][:, prefix + 3 * y + x])


def test_embedding_of_a_convolutional_classifier_is_pooled() -> None:
    model = tapped_network(fully_convolutional).eval()
    layers = layers_of(model)
    assert layers["stage1"] == "2"
    assert layers["embedding"] == "input:7"
    outputs = model.tap(INPUTS, ("embedding",))["embedding"]
    assert outputs.shape == (4, 6)
    torch.testing.assert_close(outputs, captured_by_hooks(model, {"x": "input:7"})["x"].mean((2, 3)))


# --- named by hand


@pytest.mark.parametrize(
    ("roles", "expected"),
    [
        ({"stage1": "layer2.0"}, {"stage1": "layer2.0", "embedding": "input:fc"}),  # replaces all stages
        (
            {"embedding": "input:layer3"},
            {f"stage{i}": f"layer{i}" for i in (1, 2, 3)} | {"stem": "conv1", "embedding": "input:layer3"},
        ),
        (
            {"gate": "bn1"},
            {f"stage{i}": f"layer{i}" for i in (1, 2, 3)} | {"gate": "bn1", "stem": "conv1", "embedding": "input:fc"},
        ),
        ({"stage1": "layer1", "embedding": "fc"}, {"stage1": "layer1", "embedding": "fc"}),
    ],
)
def test_manual_roles_take_precedence(roles: dict[str, str], expected: dict[str, str]) -> None:
    model = tapped_network(lambda: ResNet(8, 5), roles)
    assert layers_of(model) == dict(sorted(expected.items()))
    outputs = model.tap(INPUTS, list(expected))
    for role, value in captured_by_hooks(copy.deepcopy(model), expected).items():
        if role in expected:
            torch.testing.assert_close(outputs[role], value.mean((2, 3)) if outputs[role].ndim < value.ndim else value)


def test_input_and_output_of_a_layer_can_be_read() -> None:
    model = tapped_network(lambda: ResNet(8, 5), {"output": "fc", "embedding": "input:fc"}).eval()
    outputs = model.tap(INPUTS, ("logits", "output", "embedding"))
    assert torch.equal(outputs["output"], outputs["logits"])
    torch.testing.assert_close(F.linear(outputs["embedding"], *model.module.fc.parameters()), outputs["logits"])


def test_roles_argument_replaces_the_roles_of_the_module() -> None:
    assert layers_of(tapped_network(lambda: WRN(10, 1, 5), {}))["stage3"] == "bn"


def test_manually_named_tokens_become_maps() -> None:
    model = tapped_network(ViT, {"stage1": "norm"})
    assert model.tap(INPUTS, ("stage1",))["stage1"].shape == (4, 8, 4, 4)


def test_only_numbered_roles_are_stages() -> None:
    model = tapped_network(lambda: ResNet(8, 5), {"stage10": "layer3", "stage_last": "layer2", "stage2": "layer1"})
    assert model.stages == ("stage2", "stage10")


@pytest.mark.parametrize("layer", ["layr1", "input:layr1"])
def test_unknown_layer_names_get_a_suggestion(layer: str, refused: Any) -> None:
    with refused("layer for role 'stage1' in ResNet", "'layr1'", "did you mean 'layer1'?", "layer2.0.conv1"):
        tapped_network(lambda: ResNet(8, 5), {"stage1": layer})


@pytest.mark.parametrize("roles", [("stage1",), ("logits", "stage1")])
def test_a_named_layer_that_does_not_run_raises(roles: tuple[str, ...], refused: Any) -> None:
    model = tapped_network(SharedReLU, {"stage1": "unused"})
    with refused("layer 'unused' of SharedReLU", "'stage1'", "does not run"):
        model.tap(INPUTS, roles)


def test_an_unknown_role_raises_and_lists_the_roles(refused: Any) -> None:
    with refused("ResNet has no role 'stage4'", "stage1, stage2, stage3, embedding", "roles={"):
        tapped_network(lambda: ResNet(8, 5)).tap(INPUTS, ("logits", "stage4"))


def test_the_error_without_roles_lists_the_traced_layers(refused: Any) -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flat = nn.Flatten()
            self.weight = nn.Parameter(torch.rand(3 * 16 * 16, 5))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.flat(x) @ self.weight
            return y

    model = tapped_network(Product)
    assert model.tap(INPUTS)["logits"].shape == (4, 5)  # logits are available
    with refused("no stage or embedding found in Product", "layers traced: flat (4, 768)", "roles={"):
        model.tap(INPUTS, ("embedding",))
    assert layers_of(tapped_network(Product, {"embedding": "flat"})) == {"embedding": "flat"}


def test_tracing_does_not_change_the_network(state_of: Any, changed: Any) -> None:
    model = tapped_network(lambda: ResNet(8, 5)).train()
    model.module.get_submodule("layer2").eval()
    modes, before, random = [m.training for m in model.modules()], state_of(model), torch.get_rng_state()
    recorded_modes: list[tuple[bool, bool]] = []
    with model.module.get_submodule("bn1").register_forward_hook(
        lambda m, _, out: recorded_modes.append((m.training, out.requires_grad))
    ):
        model.trace(INPUTS)
        model.trace(INPUTS)
    assert recorded_modes == [(False, False)]  # once, in eval mode without gradients
    assert [m.training for m in model.modules()] == modes
    assert changed(before, state_of(model)) == set()
    assert torch.equal(torch.get_rng_state(), random)
    assert hooks(model) == 0


def test_an_unrelated_attribute_roles_is_ignored(refused: Any) -> None:
    for roles in ({"admin": "root"}, ["admin"], {1: 2}, "admin", None):
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
        network.roles = roles  # type: ignore[assignment]
        model = Tapped(network)
        assert model.taps == {}
        assert set(model.trace(torch.zeros(2, 1, 8, 8)).taps) == {"embedding"}
        assert model.rewrapped().module is network
    for roles in ({"stage1": "layr1"}, {"extra": "1", "more": "nowhere"}):
        network.roles = roles  # type: ignore[assignment]
        with refused("unknown layer for role"):
            Tapped(network)


@pytest.mark.parametrize("steps", [9, 10])
def test_sequences_that_a_network_declares_are_no_patches(steps: int) -> None:
    """9 steps could be the patches of a grid, 10 with a class token."""

    class Sequences(nn.Module):
        sequence_roles = ("states",)

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.fc = nn.Linear(64, 5), nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            sequences = self.inner(x.flatten(1)[:, None].expand(-1, steps, -1))
            return self.fc(sequences.mean(1))  # type: ignore[no-any-return]

    images = torch.rand(2, 1, 8, 8)
    assert Tapped(Sequences(), roles={"states": "inner"}).tap(images, ("states",))["states"].shape == (2, steps, 5)
    assert Tapped(Sequences(), roles={"features": "inner"}).tap(images, ("features",))["features"].shape == (2, 5, 3, 3)
