"""``Tapped``: roles found by tracing, captured features, normalisation, compiled code and structured inputs."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.models.resnet import ResNet
from tutelage.models.tapped import Tapped
from tutelage.models.wrn import WRN

# --- networks


class Residual(nn.Module):
    """A block as in torchvision, whose ReLU module runs twice."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample = None
        if stride > 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x if self.downsample is None else self.downsample(x)
        y: Tensor = self.relu(out)
        return y


class ImageNetResNet(nn.Module):
    """Stem, max-pool, four layers, average pool, fc, with torchvision's names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(Residual(4, 4, 1), Residual(4, 4, 1))
        self.layer2 = nn.Sequential(Residual(4, 6, 2), Residual(6, 6, 1))
        self.layer3 = nn.Sequential(Residual(6, 8, 2), Residual(8, 8, 1))
        self.layer4 = nn.Sequential(Residual(8, 10, 2), Residual(10, 10, 1))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        y: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return y


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = x + self.attention(normed, normed, normed)[0]
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class ViT(nn.Module):
    """A class token (and registers) before the patches; only the class token is classified."""

    def __init__(self, depth: int = 4, prefix: int = 1, width: int = 8) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.prefix = nn.Parameter(torch.randn(1, prefix, width))
        self.blocks = nn.ModuleList(Attention(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.prefix.expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        y: Tensor = self.head(self.norm(x)[:, 0])
        return y


class Plus(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x) + x
        return y


class ConvMixer(nn.Module):
    """All maps have one resolution; a block is itself a list of layers with weights."""

    def __init__(self, depth: int, width: int = 6) -> None:
        super().__init__()

        def block() -> nn.Sequential:
            spatial = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, groups=width), nn.GELU(), nn.BatchNorm2d(width))
            return nn.Sequential(Plus(spatial), nn.Conv2d(width, width, 1), nn.GELU(), nn.BatchNorm2d(width))

        self.stem = nn.Sequential(nn.Conv2d(3, width, 4, 4), nn.GELU(), nn.BatchNorm2d(width))
        self.blocks = nn.Sequential(*(block() for _ in range(depth)))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.blocks(self.stem(x)))
        return y


class SharedReLU(nn.Module):
    """One ReLU module runs after every convolution, so that no role can be its output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 6, 3, 2, padding=1)
        self.conv3 = nn.Conv2d(6, 6, 3, padding=1)
        self.relu = nn.ReLU()
        self.unused = nn.Linear(6, 6)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        for conv in (self.conv1, self.conv2, self.conv3):
            x = self.relu(conv(x))
        y: Tensor = self.fc(x.mean((2, 3)))
        return y


def conv_bn_relu(in_channels: int, out_channels: int) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]


def vgg() -> nn.Module:
    layers = [*conv_bn_relu(3, 4), *conv_bn_relu(4, 4), nn.MaxPool2d(2), *conv_bn_relu(4, 6), nn.MaxPool2d(2)]
    end = [nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)]  # a 1x1 map is no stage
    return nn.Sequential(*layers, *conv_bn_relu(6, 8), *end)


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3 * 16 * 16, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 5)
    )


def fully_convolutional() -> nn.Module:
    """The classifier is a convolution, whose output is averaged."""
    body = [*conv_bn_relu(3, 4), nn.MaxPool2d(2), *conv_bn_relu(4, 6)]
    return nn.Sequential(*body, nn.Conv2d(6, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def weight_normed() -> nn.Module:
    head = nn.utils.parametrizations.weight_norm(nn.Linear(4, 5))
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


INPUTS = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def tapped(make: Callable[[], nn.Module], roles: Mapping[str, str] | None = None) -> Tapped:
    torch.manual_seed(0)
    return Tapped(make(), MEAN, STD, roles)


def layers_of(model: Tapped) -> dict[str, str]:
    return {role: str(tap) for role, tap in sorted(model.trace(INPUTS).taps.items())}


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def captured_by_hooks(model: Tapped, layers: Mapping[str, str]) -> dict[str, Tensor]:
    """The inputs or outputs of these layers, copied by separate hooks."""
    captured: dict[str, Tensor] = {}
    handles = []
    for role, text in layers.items():
        layer = model.module.get_submodule(text.removeprefix("input:"))
        if text.startswith("input:"):
            handles.append(
                layer.register_forward_pre_hook(lambda _, inputs, role=role: captured.update({role: inputs[0].clone()}))
            )
        else:
            handles.append(
                layer.register_forward_hook(lambda _, __, out, role=role: captured.update({role: out.clone()}))
            )
    captured["logits"] = model.module((INPUTS - model.mean) / model.std)
    for handle in handles:
        handle.remove()
    return captured


# --- roles found by tracing

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
    model = tapped(make)
    assert layers_of(model) == dict(sorted(layers.items()))
    assert model.stages == tuple(role for role in sorted(layers) if role not in ("stem", "embedding"))
    assert model.maps == (("stem",) if "stem" in layers else ()) + model.stages


@every_network
@pytest.mark.parametrize("training", [False, True])
def test_captured_features_equal_layer_inputs_and_outputs(
    make: Callable[[], nn.Module], layers: dict[str, str], training: bool
) -> None:
    model = tapped(make).train(training)
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
    model = tapped(ImageNetResNet)
    inputs = torch.rand(2, 3, *sides)
    outputs = model.tap(inputs, ("stage1", "stage2", "stage3", "stage4", "stage5", "embedding"))
    layers = {role: str(tap) for role, tap in model.taps.items() if role not in ("stem", "embedding")}
    assert list(layers.values()) == ["relu", "layer1", "layer2", "layer3", "layer4"]
    shapes = [tuple(outputs[role].shape) for role in model.stages]
    expected = [(2, c, sides[0] // s, sides[1] // s) for c, s in ((4, 2), (4, 4), (6, 8), (8, 16))]
    assert shapes[:4] == expected
    assert shapes[4] == (2, 10, *(-(-side // 32) for side in sides))
    torch.testing.assert_close(outputs["embedding"], outputs["stage5"].mean((2, 3)))


def test_resnet_features_equal_layer_by_layer_computation() -> None:
    model = tapped(lambda: ResNet(8, 5)).eval()
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
    model = tapped(lambda: ViT(4, prefix)).eval()
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
    model = tapped(fully_convolutional).eval()
    layers = layers_of(model)
    assert layers["stage1"] == "2"
    assert layers["embedding"] == "input:7"
    outputs = model.tap(INPUTS, ("embedding",))["embedding"]
    assert outputs.shape == (4, 6)
    torch.testing.assert_close(outputs, captured_by_hooks(model, {"x": "input:7"})["x"].mean((2, 3)))


# --- roles named by hand


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
    model = tapped(lambda: ResNet(8, 5), roles)
    assert layers_of(model) == dict(sorted(expected.items()))
    outputs = model.tap(INPUTS, list(expected))
    for role, value in captured_by_hooks(copy.deepcopy(model), expected).items():
        if role in expected:
            torch.testing.assert_close(outputs[role], value.mean((2, 3)) if outputs[role].ndim < value.ndim else value)


def test_input_and_output_of_a_layer_can_be_read() -> None:
    model = tapped(lambda: ResNet(8, 5), {"output": "fc", "embedding": "input:fc"}).eval()
    outputs = model.tap(INPUTS, ("logits", "output", "embedding"))
    assert torch.equal(outputs["output"], outputs["logits"])
    torch.testing.assert_close(F.linear(outputs["embedding"], *model.module.fc.parameters()), outputs["logits"])


def test_roles_argument_replaces_the_roles_of_the_module() -> None:
    assert layers_of(tapped(lambda: WRN(10, 1, 5), {}))["stage3"] == "bn"


def test_manually_named_tokens_become_maps() -> None:
    model = tapped(ViT, {"stage1": "norm"})
    assert model.tap(INPUTS, ("stage1",))["stage1"].shape == (4, 8, 4, 4)


def test_only_numbered_roles_are_stages() -> None:
    model = tapped(lambda: ResNet(8, 5), {"stage10": "layer3", "stage_last": "layer2", "stage2": "layer1"})
    assert model.stages == ("stage2", "stage10")


@pytest.mark.parametrize("layer", ["layr1", "input:layr1"])
def test_unknown_layer_names_get_a_suggestion(layer: str, refused: Any) -> None:
    with refused("layer for role 'stage1' in ResNet", "'layr1'", "did you mean 'layer1'?", "layer2.0.conv1"):
        tapped(lambda: ResNet(8, 5), {"stage1": layer})


@pytest.mark.parametrize("roles", [("stage1",), ("logits", "stage1")])
def test_a_named_layer_that_does_not_run_raises(roles: tuple[str, ...], refused: Any) -> None:
    model = tapped(SharedReLU, {"stage1": "unused"})
    with refused("layer 'unused' of SharedReLU", "'stage1'", "does not run"):
        model.tap(INPUTS, roles)


def test_an_unknown_role_raises_and_lists_the_roles(refused: Any) -> None:
    with refused("ResNet has no role 'stage4'", "stage1, stage2, stage3, embedding", "roles={"):
        tapped(lambda: ResNet(8, 5)).tap(INPUTS, ("logits", "stage4"))


def test_the_error_without_roles_lists_the_traced_layers(refused: Any) -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flat = nn.Flatten()
            self.weight = nn.Parameter(torch.rand(3 * 16 * 16, 5))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.flat(x) @ self.weight
            return y

    model = tapped(Product)
    assert model.tap(INPUTS)["logits"].shape == (4, 5)  # logits are available
    with refused("no stage or embedding found in Product", "layers traced: flat (4, 768)", "roles={"):
        model.tap(INPUTS, ("embedding",))
    assert layers_of(tapped(Product, {"embedding": "flat"})) == {"embedding": "flat"}


# --- normalisation and precision


def test_pixels_are_normalised_per_channel() -> None:
    model = Tapped(nn.Identity(), MEAN, STD)
    x = INPUTS.tolist()
    for channel, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
        expected = [[[(v - mean) / std for v in row] for row in sample[channel]] for sample in x]
        torch.testing.assert_close(model(INPUTS)[:, channel], torch.tensor(expected))
    assert torch.equal(Tapped(nn.Identity())(INPUTS), INPUTS)
    assert torch.equal(Tapped(nn.Identity(), (0.5,), (2.0,))(INPUTS), (INPUTS - 0.5) / 2)


@pytest.mark.parametrize("roles", [("logits",), ("logits", "stage1", "embedding"), ("stage1", "embedding")])
def test_outputs_are_float32_under_autocast(roles: tuple[str, ...]) -> None:
    model = tapped(lambda: ResNet(8, 5))
    with torch.autocast("cpu", torch.bfloat16):
        assert model(INPUTS).dtype == torch.bfloat16
        outputs = model.tap(INPUTS, roles)
    assert {outputs[role].dtype for role in roles} == {torch.float32}


# --- no side effects


def test_tap_returns_exactly_the_requested_roles() -> None:
    model = tapped(lambda: ResNet(8, 5))
    for roles in (["logits"], ["stage2"], ["stage2", "logits"], ["embedding", "stage1"], ["stage1", "stage1"]):
        outputs = model.tap(INPUTS, roles)
        assert (outputs.logits is not None) == ("logits" in roles)
        assert outputs.features.keys() == set(roles) - {"logits"}
    assert torch.equal(model.eval().tap(INPUTS)["logits"], model(INPUTS))


@pytest.mark.parametrize("roles", [["stage2"], ["stage2", "stage1"], ["stage1", "stage2"], ["stage2", "stage2"]])
def test_without_logits_later_layers_are_not_updated(roles: list[str], state_of: Any, changed: Any) -> None:
    model = tapped(lambda: ResNet(8, 5)).trace(INPUTS).train()
    before, whole = state_of(model), copy.deepcopy(model)
    outputs = model.tap(INPUTS, roles)
    updated = {name.split(".")[1] for name in changed(before, state_of(model))}
    assert updated == {"bn1", "layer1", "layer2"}
    counts = {n: int(b) for n, b in model.module.named_buffers() if n.endswith("num_batches_tracked")}
    assert counts == {name: int(not name.startswith("layer3")) for name in counts}

    outputs["stage2"].square().mean().backward()
    trained = {name.split(".")[0] for name, p in model.module.named_parameters() if p.grad is not None}
    assert trained == {"conv1", "bn1", "layer1", "layer2"}
    assert torch.equal(outputs["stage2"], whole.tap(INPUTS, ("logits", "stage2"))["stage2"])


def test_without_logits_later_layers_do_not_run() -> None:
    model = tapped(lambda: ResNet(8, 5)).trace(INPUTS)
    for name in ("layer3", "fc"):
        model.module.get_submodule(name).register_forward_pre_hook(lambda *_: pytest.fail("a later layer ran"))
    model.tap(INPUTS, ("stage1", "stage2"))


def test_each_call_returns_new_tensors() -> None:
    model, other = tapped(lambda: ResNet(8, 5)).eval(), INPUTS.flip(0, 2)
    first = model.tap(INPUTS, ("logits", "stage1"))
    first_stage = first["stage1"].detach().clone()
    second = model.tap(other, ("logits", "stage1"))
    assert first["stage1"] is not second["stage1"]
    assert torch.equal(first["stage1"], first_stage)
    assert not torch.allclose(second["stage1"], first_stage)
    (first["stage1"].sum() + second["stage1"].sum()).backward()  # through both graphs
    assert model.module.get_submodule("conv1").weight.grad is not None


def test_hooks_are_removed_after_the_call() -> None:
    model = tapped(lambda: ResNet(8, 5))
    during: list[int] = []
    model.module.get_submodule("bn1").register_forward_hook(lambda *_: during.append(hooks(model)))
    for roles in (("logits",), ("logits", "stage1", "embedding"), ("stage1", "stage2")):
        model.tap(INPUTS, roles)
        assert hooks(model) == 1
    assert during[0] == 1  # logits need no hooks
    assert min(during[-2:]) == 3


class BoomError(RuntimeError):
    pass


@pytest.mark.parametrize("roles", [("logits", "stage1"), ("stage3",)])
@pytest.mark.parametrize("when", ["tracing", "running"])
def test_hooks_and_modes_are_restored_after_an_exception(when: str, roles: tuple[str, ...], refused: Any) -> None:
    model = tapped(lambda: ResNet(8, 5)).train()
    model.module.get_submodule("layer1").eval()
    modes = {name: module.training for name, module in model.named_modules()}
    if when == "running":
        model.trace(INPUTS)

    def boom(*_: object) -> None:
        raise BoomError

    with model.module.get_submodule("layer2.0.conv2").register_forward_hook(boom), pytest.raises(BoomError):
        model.tap(INPUTS, roles)
    assert hooks(model) == 0
    assert {name: module.training for name, module in model.named_modules()} == modes
    with refused("no role 'stage9'"):
        model.tap(INPUTS, ("stage1", "stage9"))
    assert hooks(model) == 0
    assert model.tap(INPUTS, roles).features.keys() == set(roles) - {"logits"}  # tap still works


def test_tracing_does_not_change_the_network(state_of: Any, changed: Any) -> None:
    model = tapped(lambda: ResNet(8, 5)).train()
    model.module.get_submodule("layer2").eval()
    modes, before, random = [m.training for m in model.modules()], state_of(model), torch.get_rng_state()
    captured: list[tuple[bool, bool]] = []
    with model.module.get_submodule("bn1").register_forward_hook(
        lambda m, _, out: captured.append((m.training, out.requires_grad))
    ):
        model.trace(INPUTS)
        model.trace(INPUTS)
    assert captured == [(False, False)]  # once, in eval mode without gradients
    assert [m.training for m in model.modules()] == modes
    assert changed(before, state_of(model)) == set()
    assert torch.equal(torch.get_rng_state(), random)
    assert hooks(model) == 0


def test_state_dict_keys_do_not_change(tiny_model: Callable[..., Tapped]) -> None:
    model, inputs = tiny_model(), torch.rand(2, 1, 8, 8)
    keys = list(type(model.module)().state_dict())
    for _ in range(2):
        model.tap(inputs, ("logits", "stage1"))
        assert list(model.module.state_dict()) == keys
        assert list(model.state_dict()) == [f"module.{key}" for key in keys]
        model.compile(backend="eager")


# --- compiled

COMPILER = shutil.which("g++") or shutil.which("c++")


@pytest.mark.skipif(COMPILER is None, reason="torch.compile needs a C++ compiler, g++ or c++, on the path")
def test_compiled_equals_eager_in_value_and_gradient(tiny_model: Callable[..., Tapped]) -> None:
    eager, compiled = tiny_model(), tiny_model()
    compiled.compile()
    inputs, roles = torch.rand(8, 1, 8, 8), ("logits", "stage1", "embedding")
    for _ in range(2):  # the second iteration runs the compiled code
        for model in (eager, compiled):
            model.zero_grad()
        expected, outputs = eager.tap(inputs, roles), compiled.tap(inputs, roles)
        assert outputs.features.keys() == expected.features.keys()
        for role in roles:
            torch.testing.assert_close(outputs[role], expected[role], rtol=1e-5, atol=1e-5)
        for result in (expected, outputs):
            sum((result[role] ** 2).mean() for role in roles).backward()  # type: ignore[union-attr]
        for actual, reference in zip(compiled.parameters(), eager.parameters(), strict=True):
            torch.testing.assert_close(actual.grad, reference.grad, rtol=1e-5, atol=1e-5)
        for actual, reference in zip(compiled.buffers(), eager.buffers(), strict=True):
            torch.testing.assert_close(actual, reference, rtol=1e-5, atol=1e-5)


@pytest.fixture
def lightly_compiled(tiny_model: Callable[..., Tapped]) -> Tapped:
    """With Dynamo only, which needs no C++ compiler."""
    model = tiny_model().eval()
    model.compile(backend="eager")
    model.tap(torch.rand(2, 1, 8, 8), ("logits", "stage1"))
    return model


def test_a_copy_of_a_compiled_network_runs_itself(lightly_compiled: Tapped) -> None:
    inputs, roles = torch.rand(2, 1, 8, 8), ("logits", "stage1")
    copied = copy.deepcopy(lightly_compiled)
    assert hooks(copied) == 0
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(0.5)
    for requested in (roles, ("logits",), ("stage1",)):
        reference, actual = lightly_compiled.tap(inputs, requested), copied.tap(inputs, requested)
        assert not torch.allclose(reference[requested[0]], actual[requested[0]])
    torch.testing.assert_close(copied.tap(inputs)["logits"], copied(inputs))


def test_compiling_again_removes_the_earlier_hooks(lightly_compiled: Tapped) -> None:
    before, inputs = hooks(lightly_compiled), torch.rand(2, 1, 8, 8)
    assert before == 1
    lightly_compiled.compile(backend="eager")
    outputs = lightly_compiled.tap(inputs, ("logits", "stage1"))
    assert hooks(lightly_compiled) == before
    torch.testing.assert_close(outputs["logits"], lightly_compiled(inputs))


@pytest.mark.parametrize("shape", [(6, 12), (6,), (2, 5, 7), (2, 1, 3, 8, 8), (2, 1, 8, 8), (2, 4, 8, 8)])
def test_inputs_with_other_channels_raise(shape: tuple[int, ...], refused: Any) -> None:
    """Otherwise they would be broadcast to other shapes or channels."""
    model = Tapped(nn.Flatten(), [0.1, 0.2, 0.3], [1.0, 2.0, 3.0])
    for run in (model, model.tap, model.trace):
        with refused("(B, 3, H, W)", str(shape), ".module"):
            run(torch.zeros(shape))


def test_without_mean_and_std_inputs_do_not_change() -> None:
    for shape in ((6,), (6, 12), (2, 1, 7), (2, 3, 8, 8)):
        inputs = torch.randn(shape)
        assert Tapped(nn.Identity())(inputs) is inputs


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 5), (2, 3, 4, 5), (2, 3, 2, 2, 2)])
def test_floating_point_inputs_are_normalised_along_axis_1(shape: tuple[int, ...]) -> None:
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 2.0, 3.0])
    inputs = torch.rand(shape)
    normalised = Tapped(nn.Identity(), mean.tolist(), std.tolist())(inputs)
    for channel in range(3):
        assert torch.equal(normalised[:, channel], (inputs[:, channel] - mean[channel]) / std[channel])


def test_integers_are_not_normalised() -> None:
    tokens = torch.tensor([[3, 0, 1, 2]])
    normalised = Tapped(nn.Identity(), [0.5], [0.5])(tokens)
    assert normalised.dtype == torch.int64
    assert torch.equal(normalised, tokens)


def test_a_single_mean_and_std_normalise_all_channels() -> None:
    normalised = Tapped(nn.Identity(), [0.5], [0.5])(torch.full((2, 3, 4, 4), 1.0))
    assert torch.equal(normalised, torch.ones(2, 3, 4, 4))


def test_wrapping_a_tapped_network_raises(refused: Any) -> None:
    with refused("normalises twice", ".module"):
        Tapped(Tapped(nn.Flatten()))


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


# --- several inputs and structured outputs


class TwoInputs(nn.Module):
    """Images and token ids with an optional mask; by position or by name."""

    def __init__(self, returns: Callable[[Tensor], Any] = lambda logits: logits) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2)
        self.embed = nn.Embedding(9, 4)
        self.fc, self.returns = nn.Linear(4, 5), returns

    def forward(self, pixels: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Any:
        words = self.embed(tokens)
        words = words.mean(1) if mask is None else (words * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return self.returns(self.fc(self.conv(pixels).mean((2, 3)) + words))


TOKENS = torch.randint(9, (4, 6), generator=torch.Generator().manual_seed(1))
MASK = torch.tensor([[1.0, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0], [1] * 6, [0, 1, 0, 1, 0, 1]])
INPUT_FORMS: dict[str, Any] = {
    "tuple": (INPUTS, TOKENS, MASK),
    "list": [INPUTS, TOKENS, MASK],
    "dict": {"pixels": INPUTS, "tokens": TOKENS, "mask": MASK},
}


@pytest.mark.parametrize("inputs", INPUT_FORMS.values(), ids=INPUT_FORMS.keys())
def test_among_several_inputs_only_images_are_normalised(inputs: Any) -> None:
    model = tapped(TwoInputs).eval()
    expected = model.module((INPUTS - model.mean) / model.std, TOKENS, MASK)
    assert torch.equal(model(inputs), expected)
    assert torch.equal(model(*INPUT_FORMS["tuple"]), expected)
    assert torch.equal(model(INPUTS, TOKENS, mask=MASK), expected)
    assert torch.equal(model(**INPUT_FORMS["dict"]), expected)
    outputs = model.tap(inputs, ("logits", "embedding", "stage1"))
    assert torch.equal(outputs["logits"], expected)
    assert outputs["embedding"].shape == (4, 4)
    assert outputs["stage1"].shape == (4, 4, 7, 7)
    assert model.passes == 4
    before = hooks(model)
    assert torch.equal(model.tap(inputs, ("embedding",))["embedding"], outputs["embedding"])
    assert hooks(model) == before


def test_a_single_list_or_mapping_input_must_be_in_a_tuple() -> None:
    class Sum(nn.Module):
        def forward(self, parts: Any) -> Tensor:
            y: Tensor = sum(parts.values() if isinstance(parts, dict) else parts)
            return y

    model, parts = Tapped(Sum()), [torch.ones(3, 2), torch.ones(3, 2)]
    assert torch.equal(model((parts,)), torch.full((3, 2), 2.0))
    assert torch.equal(model(({"a": parts[0], "b": parts[1]},)), torch.full((3, 2), 2.0))
    with pytest.raises(TypeError):
        model(parts)


OUTPUT_FORMS: dict[str, Callable[[Tensor], Any]] = {
    "tuple": lambda logits: (logits, logits * 2),
    "mapping": lambda logits: {"loss": logits.sum(), "logits": logits},
    "object": lambda logits: SimpleNamespace(loss=None, logits=logits),
}


@pytest.mark.parametrize("returns", OUTPUT_FORMS.values(), ids=OUTPUT_FORMS.keys())
def test_logits_are_found_in_structured_outputs(returns: Callable[[Tensor], Any]) -> None:
    model, plain = tapped(lambda: TwoInputs(returns)), tapped(TwoInputs)
    for roles in (("logits",), ("logits", "embedding")):
        assert torch.equal(model.tap(INPUT_FORMS["dict"], roles)["logits"], plain(INPUT_FORMS["dict"]))
    assert torch.equal(model(INPUT_FORMS["dict"]), plain(INPUT_FORMS["dict"]))


@pytest.mark.parametrize(
    ("returns", "description"),
    [
        (lambda logits: (logits.sum(), logits), "tuple of (), (4, 5)"),
        (lambda logits: {"hidden": logits, "more": None}, "dict with hidden: (4, 5), more: NoneType"),
        (lambda logits: SimpleNamespace(scores=logits), "SimpleNamespace"),
        (lambda logits: [], "list of nothing"),
    ],
)  # fmt: skip
def test_the_error_without_logits_describes_the_output(
    returns: Callable[[Tensor], Any], description: str, refused: Any
) -> None:
    model = tapped(lambda: TwoInputs(returns))
    for run in (model, model.tap):
        with refused("TwoInputs returns no logits in train mode", description, "'logits'"):
            run(INPUT_FORMS["dict"])
    assert model.tap(INPUT_FORMS["dict"], ("embedding",))["embedding"].shape == (4, 4)  # needs no logits


def test_inputs_without_a_tensor_raise(refused: Any) -> None:
    with refused("no input is a tensor", "dict"):
        tapped(TwoInputs).tap({"pixels": None}, ("stage1",))


def test_networks_do_not_share_compiled_code(tiny_model: Callable[..., Tapped]) -> None:
    torch.compiler.reset()
    pixels, roles = torch.rand(4, 1, 8, 8), ("logits", "stage1")

    def check(model: Tapped, roles: Sequence[str]) -> None:
        expected = model.eval().tap(pixels, roles)
        model.compile(backend="eager")
        compiled = model.tap(pixels, roles)
        assert all(torch.equal(compiled[role], expected[role]) for role in roles)

    for width in range(3, 12):  # more than torch caches per code object
        check(tiny_model(width=width), roles)
    check(tiny_model(1), ("logits",))  # without hooks
    check(tiny_model(2), roles)
