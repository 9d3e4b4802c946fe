"""Any network under ``Tapped``: which layers are found, what is captured, and what a tap leaves untouched."""

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

# --- networks as people write them


class Residual(nn.Module):
    """A block as torchvision's, whose one ReLU runs twice."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.downsample = None
        if stride > 1 or inside != outside:
            self.downsample = nn.Sequential(nn.Conv2d(inside, outside, 1, stride), nn.BatchNorm2d(outside))

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
    """A class token (and registers) in front of the patches, of which only the first is classified."""

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
    """One resolution from end to end; a block is itself a list of weighted layers."""

    def __init__(self, depth: int, width: int = 6) -> None:
        super().__init__()

        def mixing() -> nn.Sequential:
            spatial = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, groups=width), nn.GELU(), nn.BatchNorm2d(width))
            return nn.Sequential(Plus(spatial), nn.Conv2d(width, width, 1), nn.GELU(), nn.BatchNorm2d(width))

        self.stem = nn.Sequential(nn.Conv2d(3, width, 4, 4), nn.GELU(), nn.BatchNorm2d(width))
        self.blocks = nn.Sequential(*(mixing() for _ in range(depth)))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.blocks(self.stem(x)))
        return y


class SharedReLU(nn.Module):
    """One ReLU runs after every convolution, so that it is nobody's layer."""

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


def conv_bn_relu(inside: int, outside: int) -> list[nn.Module]:
    return [nn.Conv2d(inside, outside, 3, padding=1), nn.BatchNorm2d(outside), nn.ReLU(inplace=True)]


def vgg() -> nn.Module:
    layers = [*conv_bn_relu(3, 4), *conv_bn_relu(4, 4), nn.MaxPool2d(2), *conv_bn_relu(4, 6), nn.MaxPool2d(2)]
    end = [nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)]  # no stage of its own
    return nn.Sequential(*layers, *conv_bn_relu(6, 8), *end)


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3 * 16 * 16, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 5)
    )


def fully_convolutional() -> nn.Module:
    """Its classifier is a convolution, and what that gives is averaged."""
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


def seen_by_hand(model: Tapped, layers: Mapping[str, str]) -> dict[str, Tensor]:
    """What these layers take or give, by hooks of the test's own that copy it at once."""
    seen: dict[str, Tensor] = {}
    handles = []
    for role, text in layers.items():
        layer = model.module.get_submodule(text.removeprefix("input:"))
        if text.startswith("input:"):
            handles.append(
                layer.register_forward_pre_hook(lambda _, taken, role=role: seen.update({role: taken[0].clone()}))
            )
        else:
            handles.append(layer.register_forward_hook(lambda _, __, out, role=role: seen.update({role: out.clone()})))
    seen["logits"] = model.module((INPUTS - model.mean) / model.std)
    for handle in handles:
        handle.remove()
    return seen


# --- which layers are found

FOUND: dict[str, tuple[Callable[[], nn.Module], dict[str, str]]] = {
    "resnet": (
        lambda: ResNet(8, 5),
        {"stem": "input:layer1", "stage1": "layer1", "stage2": "layer2", "stage3": "layer3", "embedding": "input:fc"},
    ),
    "wrn": (
        lambda: WRN(10, 1, 5),
        {"stem": "conv1", "stage1": "block1", "stage2": "block2", "stage3": "block3", "embedding": "input:fc"},
    ),
    "vgg": (vgg, {"stem": "0", "stage1": "5", "stage2": "9", "stage3": "13", "embedding": "input:17"}),
    "imagenet resnet": (  # of 8x8, 4x4, 2x2; the fourth layer has one pixel
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
every_network = pytest.mark.parametrize(("make", "layers"), FOUND.values(), ids=FOUND.keys())


@every_network
def test_layers_are_found(make: Callable[[], nn.Module], layers: dict[str, str]) -> None:
    model = tapped(make)
    assert layers_of(model) == dict(sorted(layers.items()))
    assert model.stages == tuple(role for role in sorted(layers) if role not in ("stem", "embedding"))
    assert model.maps == (("stem",) if "stem" in layers else ()) + model.stages


@every_network
@pytest.mark.parametrize("training", [False, True])
def test_captured_is_what_the_layers_take_and_give(
    make: Callable[[], nn.Module], layers: dict[str, str], training: bool
) -> None:
    model = tapped(make).train(training)
    expected = seen_by_hand(copy.deepcopy(model), layers)
    found = model.tap(INPUTS, ["logits", *layers])
    assert found.features.keys() == layers.keys()
    for role, value in expected.items():
        tensor = found[role]
        if value.ndim == 3:  # tokens; their order is tested below
            tensor = tensor.flatten(2).transpose(1, 2)
            value = value[:, 1:]  # noqa: PLW2901
        assert torch.equal(tensor, value), role


@pytest.mark.parametrize("sides", [(64, 64), (48, 80)])
def test_stages_of_an_imagenet_resnet_and_their_sizes(sides: tuple[int, int]) -> None:
    model = tapped(ImageNetResNet)
    inputs = torch.rand(2, 3, *sides)
    found = model.tap(inputs, ("stage1", "stage2", "stage3", "stage4", "stage5", "embedding"))
    layers = {role: str(tap) for role, tap in model.taps.items() if role not in ("stem", "embedding")}
    assert list(layers.values()) == ["relu", "layer1", "layer2", "layer3", "layer4"]
    shapes = [tuple(found[role].shape) for role in model.stages]
    expected = [(2, c, sides[0] // s, sides[1] // s) for c, s in ((4, 2), (4, 4), (6, 8), (8, 16))]
    assert shapes[:4] == expected
    assert shapes[4] == (2, 10, *(-(-side // 32) for side in sides))
    torch.testing.assert_close(found["embedding"], found["stage5"].mean((2, 3)))


def test_features_of_a_resnet_composed_by_hand() -> None:
    model = tapped(lambda: ResNet(8, 5)).eval()
    net, x = model.module, (INPUTS - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    assert isinstance(net, ResNet)
    x = F.relu(net.bn1(net.conv1(x)))
    stages = [x := net.layer1(x), x := net.layer2(x), x := net.layer3(x)]
    found = model.tap(INPUTS, ("logits", "stage1", "stage2", "stage3", "embedding"))
    for role, value in zip(("stage1", "stage2", "stage3"), stages, strict=True):
        torch.testing.assert_close(found[role], value)
    torch.testing.assert_close(found["embedding"], x.mean((2, 3)))
    torch.testing.assert_close(found["logits"], net.fc(x.mean((2, 3))))


@pytest.mark.parametrize("prefix", [1, 5])
def test_tokens_are_maps_of_their_patches_row_by_row(prefix: int) -> None:
    model = tapped(lambda: ViT(4, prefix)).eval()
    inputs = torch.rand(2, 3, 8, 12)  # 2 x 3 patches
    tokens: list[Tensor] = []
    block = model.module.get_submodule("blocks.1")
    with block.register_forward_hook(lambda _, __, out: tokens.append(out)):
        model(inputs)
    found = model.tap(inputs, ("stage2",))["stage2"]
    assert found.shape == (2, 8, 2, 3)
    for y in range(2):
        for x in range(3):
            assert torch.equal(found[:, :, y, x], tokens[0][:, prefix + 3 * y + x])


def test_a_convolution_as_classifier_is_given_the_embedding() -> None:
    model = tapped(fully_convolutional).eval()
    layers = layers_of(model)
    assert layers["stage1"] == "2"
    assert layers["embedding"] == "input:7"
    found = model.tap(INPUTS, ("embedding",))["embedding"]
    assert found.shape == (4, 6)
    torch.testing.assert_close(found, seen_by_hand(model, {"x": "input:7"})["x"].mean((2, 3)))


# --- naming them by hand


@pytest.mark.parametrize(
    ("roles", "expected"),
    [
        ({"stage1": "layer2.0"}, {"stage1": "layer2.0", "embedding": "input:fc"}),  # replaces all that would be found
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
def test_names_by_hand_come_before_what_is_found(roles: dict[str, str], expected: dict[str, str]) -> None:
    model = tapped(lambda: ResNet(8, 5), roles)
    assert layers_of(model) == dict(sorted(expected.items()))
    found = model.tap(INPUTS, list(expected))
    for role, value in seen_by_hand(copy.deepcopy(model), expected).items():
        if role in expected:
            torch.testing.assert_close(found[role], value.mean((2, 3)) if found[role].ndim < value.ndim else value)


def test_what_is_given_and_what_is_taken() -> None:
    model = tapped(lambda: ResNet(8, 5), {"given": "fc", "embedding": "input:fc"}).eval()
    found = model.tap(INPUTS, ("logits", "given", "embedding"))
    assert torch.equal(found["given"], found["logits"])
    torch.testing.assert_close(F.linear(found["embedding"], *model.module.fc.parameters()), found["logits"])


def test_names_given_replace_those_of_the_network_itself() -> None:
    assert layers_of(tapped(lambda: WRN(10, 1, 5), {}))["stage3"] == "bn"


def test_tokens_named_by_hand_are_maps_too() -> None:
    model = tapped(ViT, {"stage1": "norm"})
    assert model.tap(INPUTS, ("stage1",))["stage1"].shape == (4, 8, 4, 4)


def test_a_role_that_is_no_number_is_no_stage_in_the_row() -> None:
    model = tapped(lambda: ResNet(8, 5), {"stage10": "layer3", "stage_last": "layer2", "stage2": "layer1"})
    assert model.stages == ("stage2", "stage10")


@pytest.mark.parametrize("layer", ["layr1", "input:layr1"])
def test_a_wrong_name_is_answered_with_the_nearest(layer: str, refused: Any) -> None:
    with refused("layer for role 'stage1' in ResNet", "'layr1'", "did you mean 'layer1'?", "layer2.0.conv1"):
        tapped(lambda: ResNet(8, 5), {"stage1": layer})


@pytest.mark.parametrize("roles", [("stage1",), ("logits", "stage1")])
def test_a_named_layer_that_does_not_run_is_said_to_be_idle(roles: tuple[str, ...], refused: Any) -> None:
    model = tapped(SharedReLU, {"stage1": "unused"})
    with refused("layer 'unused' of SharedReLU", "'stage1'", "does not run"):
        model.tap(INPUTS, roles)


def test_a_role_that_does_not_exist_is_answered_with_those_that_do(refused: Any) -> None:
    with refused("ResNet has no role 'stage4'", "stage1, stage2, stage3, embedding", "roles={"):
        tapped(lambda: ResNet(8, 5)).tap(INPUTS, ("logits", "stage4"))


def test_where_nothing_is_found_the_layers_seen_are_named(refused: Any) -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flat = nn.Flatten()
            self.weight = nn.Parameter(torch.rand(3 * 16 * 16, 5))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.flat(x) @ self.weight
            return y

    model = tapped(Product)
    assert model.tap(INPUTS)["logits"].shape == (4, 5)  # as a student of logits it will do
    with refused("no stage or embedding found in Product", "layers traced: flat (4, 768)", "roles={"):
        model.tap(INPUTS, ("embedding",))
    assert layers_of(tapped(Product, {"embedding": "flat"})) == {"embedding": "flat"}


# --- normalisation and precision


def test_pixels_are_normalised_by_channel() -> None:
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
        found = model.tap(INPUTS, roles)
    assert {found[role].dtype for role in roles} == {torch.float32}


# --- what a tap leaves untouched


def test_exactly_the_roles_that_are_asked_for() -> None:
    model = tapped(lambda: ResNet(8, 5))
    for roles in (["logits"], ["stage2"], ["stage2", "logits"], ["embedding", "stage1"], ["stage1", "stage1"]):
        found = model.tap(INPUTS, roles)
        assert (found.logits is not None) == ("logits" in roles)
        assert found.features.keys() == set(roles) - {"logits"}
    assert torch.equal(model.eval().tap(INPUTS)["logits"], model(INPUTS))


@pytest.mark.parametrize("roles", [["stage2"], ["stage2", "stage1"], ["stage1", "stage2"], ["stage2", "stage2"]])
def test_without_logits_nothing_behind_the_last_role_runs(roles: list[str], state_of: Any, changed: Any) -> None:
    model = tapped(lambda: ResNet(8, 5)).trace(INPUTS).train()
    before, whole = state_of(model), copy.deepcopy(model)
    found = model.tap(INPUTS, roles)
    moved = {name.split(".")[1] for name in changed(before, state_of(model))}
    assert moved == {"bn1", "layer1", "layer2"}
    counts = {n: int(b) for n, b in model.module.named_buffers() if n.endswith("num_batches_tracked")}
    assert counts == {name: int(not name.startswith("layer3")) for name in counts}

    found["stage2"].square().mean().backward()
    trained = {name.split(".")[0] for name, p in model.module.named_parameters() if p.grad is not None}
    assert trained == {"conv1", "bn1", "layer1", "layer2"}
    assert torch.equal(found["stage2"], whole.tap(INPUTS, ("logits", "stage2"))["stage2"])


def test_an_early_end_runs_no_layer_behind() -> None:
    model = tapped(lambda: ResNet(8, 5)).trace(INPUTS)
    for name in ("layer3", "fc"):
        model.module.get_submodule(name).register_forward_pre_hook(lambda *_: pytest.fail("it ran"))
    model.tap(INPUTS, ("stage1", "stage2"))


def test_each_call_has_its_own_store() -> None:
    model, other = tapped(lambda: ResNet(8, 5)).eval(), INPUTS.flip(0, 2)
    first = model.tap(INPUTS, ("logits", "stage1"))
    kept = first["stage1"].detach().clone()
    second = model.tap(other, ("logits", "stage1"))
    assert first["stage1"] is not second["stage1"]
    assert torch.equal(first["stage1"], kept)
    assert not torch.allclose(second["stage1"], kept)
    (first["stage1"].sum() + second["stage1"].sum()).backward()  # through both graphs
    assert model.module.get_submodule("conv1").weight.grad is not None


def test_hooks_live_only_during_the_call() -> None:
    model = tapped(lambda: ResNet(8, 5))
    during: list[int] = []
    model.module.get_submodule("bn1").register_forward_hook(lambda *_: during.append(hooks(model)))
    for roles in (("logits",), ("logits", "stage1", "embedding"), ("stage1", "stage2")):
        model.tap(INPUTS, roles)
        assert hooks(model) == 1
    assert during[0] == 1  # logits alone need none
    assert min(during[-2:]) == 3


class BoomError(RuntimeError):
    pass


@pytest.mark.parametrize("roles", [("logits", "stage1"), ("stage3",)])
@pytest.mark.parametrize("when", ["tracing", "running"])
def test_hooks_and_modes_survive_an_exception(when: str, roles: tuple[str, ...], refused: Any) -> None:
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
    assert model.tap(INPUTS, roles).features.keys() == set(roles) - {"logits"}  # and it works again


def test_tracing_changes_nothing(state_of: Any, changed: Any) -> None:
    model = tapped(lambda: ResNet(8, 5)).train()
    model.module.get_submodule("layer2").eval()
    modes, before, random = [m.training for m in model.modules()], state_of(model), torch.get_rng_state()
    seen: list[tuple[bool, bool]] = []
    with model.module.get_submodule("bn1").register_forward_hook(
        lambda m, _, out: seen.append((m.training, out.requires_grad))
    ):
        model.trace(INPUTS)
        model.trace(INPUTS)
    assert seen == [(False, False)]  # in eval mode, without gradients, and once
    assert [m.training for m in model.modules()] == modes
    assert changed(before, state_of(model)) == set()
    assert torch.equal(torch.get_rng_state(), random)
    assert hooks(model) == 0


def test_the_networks_own_keys_are_untouched(tiny_model: Callable[..., Tapped]) -> None:
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
    for _ in range(2):  # the second runs what the first has compiled
        for model in (eager, compiled):
            model.zero_grad()
        expected, found = eager.tap(inputs, roles), compiled.tap(inputs, roles)
        assert found.features.keys() == expected.features.keys()
        for role in roles:
            torch.testing.assert_close(found[role], expected[role], rtol=1e-5, atol=1e-5)
        for outputs in (expected, found):
            sum((outputs[role] ** 2).mean() for role in roles).backward()  # type: ignore[union-attr]
        for ours, theirs in zip(compiled.parameters(), eager.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5)
        for ours, theirs in zip(compiled.buffers(), eager.buffers(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.fixture
def lightly_compiled(tiny_model: Callable[..., Tapped]) -> Tapped:
    """Through Dynamo alone, which needs no compiler."""
    model = tiny_model().eval()
    model.compile(backend="eager")
    model.tap(torch.rand(2, 1, 8, 8), ("logits", "stage1"))
    return model


def test_a_copy_of_a_compiled_network_runs_itself(lightly_compiled: Tapped) -> None:
    inputs, roles = torch.rand(2, 1, 8, 8), ("logits", "stage1")
    twin = copy.deepcopy(lightly_compiled)
    assert hooks(twin) == 0
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(0.5)
    for asked in (roles, ("logits",), ("stage1",)):
        theirs, ours = lightly_compiled.tap(inputs, asked), twin.tap(inputs, asked)
        assert not torch.allclose(theirs[asked[0]], ours[asked[0]])
    torch.testing.assert_close(twin.tap(inputs)["logits"], twin(inputs))


def test_compiling_again_takes_the_earlier_hooks_away(lightly_compiled: Tapped) -> None:
    before, inputs = hooks(lightly_compiled), torch.rand(2, 1, 8, 8)
    assert before == 1
    lightly_compiled.compile(backend="eager")
    found = lightly_compiled.tap(inputs, ("logits", "stage1"))
    assert hooks(lightly_compiled) == before
    torch.testing.assert_close(found["logits"], lightly_compiled(inputs))


@pytest.mark.parametrize("shape", [(6, 12), (6,), (2, 5, 7), (2, 1, 3, 8, 8), (2, 1, 8, 8), (2, 4, 8, 8)])
def test_inputs_of_other_channels_are_refused(shape: tuple[int, ...], refused: Any) -> None:
    """Where they would be broadcast to other shapes, or to other channels."""
    model = Tapped(nn.Flatten(), [0.1, 0.2, 0.3], [1.0, 2.0, 3.0])
    for run in (model, model.tap, model.trace):
        with refused("(B, 3, H, W)", str(shape), ".module"):
            run(torch.zeros(shape))


def test_without_a_mean_any_input_is_left_as_it_is() -> None:
    for shape in ((6,), (6, 12), (2, 1, 7), (2, 3, 8, 8)):
        inputs = torch.randn(shape)
        assert Tapped(nn.Identity())(inputs) is inputs


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 5), (2, 3, 4, 5), (2, 3, 2, 2, 2)])
def test_floating_inputs_are_normalised_along_the_second_axis(shape: tuple[int, ...]) -> None:
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 2.0, 3.0])
    inputs = torch.rand(shape)
    given = Tapped(nn.Identity(), mean.tolist(), std.tolist())(inputs)
    for channel in range(3):
        assert torch.equal(given[:, channel], (inputs[:, channel] - mean[channel]) / std[channel])


def test_integers_pass_unchanged() -> None:
    tokens = torch.tensor([[3, 0, 1, 2]])
    given = Tapped(nn.Identity(), [0.5], [0.5])(tokens)
    assert given.dtype == torch.int64
    assert torch.equal(given, tokens)


def test_one_number_normalises_all_channels() -> None:
    given = Tapped(nn.Identity(), [0.5], [0.5])(torch.full((2, 3, 4, 4), 1.0))
    assert torch.equal(given, torch.ones(2, 3, 4, 4))


def test_a_network_is_not_normalised_twice(refused: Any) -> None:
    with refused("normalises twice", ".module"):
        Tapped(Tapped(nn.Flatten()))


def test_an_attribute_of_the_users_that_names_no_layer_is_no_role(refused: Any) -> None:
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


# --- several inputs, and what networks return


class TwoInputs(nn.Module):
    """Images and token numbers, of which some do not count; the tokens by position or by name."""

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
GIVEN: dict[str, Any] = {
    "tuple": (INPUTS, TOKENS, MASK),
    "list": [INPUTS, TOKENS, MASK],
    "dict": {"pixels": INPUTS, "tokens": TOKENS, "mask": MASK},
}


@pytest.mark.parametrize("inputs", GIVEN.values(), ids=GIVEN.keys())
def test_of_several_inputs_only_images_are_normalised(inputs: Any) -> None:
    model = tapped(TwoInputs).eval()
    expected = model.module((INPUTS - model.mean) / model.std, TOKENS, MASK)
    assert torch.equal(model(inputs), expected)
    assert torch.equal(model(*GIVEN["tuple"]), expected)
    assert torch.equal(model(INPUTS, TOKENS, mask=MASK), expected)
    assert torch.equal(model(**GIVEN["dict"]), expected)
    found = model.tap(inputs, ("logits", "embedding", "stage1"))
    assert torch.equal(found["logits"], expected)
    assert found["embedding"].shape == (4, 4)
    assert found["stage1"].shape == (4, 4, 7, 7)
    assert model.passes == 4
    before = hooks(model)
    assert torch.equal(model.tap(inputs, ("embedding",))["embedding"], found["embedding"])
    assert hooks(model) == before


def test_an_input_that_is_a_list_or_a_mapping_itself_stands_in_a_tuple_of_one() -> None:
    class Sum(nn.Module):
        def forward(self, parts: Any) -> Tensor:
            y: Tensor = sum(parts.values() if isinstance(parts, dict) else parts)
            return y

    model, parts = Tapped(Sum()), [torch.ones(3, 2), torch.ones(3, 2)]
    assert torch.equal(model((parts,)), torch.full((3, 2), 2.0))
    assert torch.equal(model(({"a": parts[0], "b": parts[1]},)), torch.full((3, 2), 2.0))
    with pytest.raises(TypeError):
        model(parts)


RETURNED: dict[str, Callable[[Tensor], Any]] = {
    "tuple": lambda logits: (logits, logits * 2),
    "mapping": lambda logits: {"loss": logits.sum(), "logits": logits},
    "object": lambda logits: SimpleNamespace(loss=None, logits=logits),
}


@pytest.mark.parametrize("returns", RETURNED.values(), ids=RETURNED.keys())
def test_logits_are_found_in_what_is_returned(returns: Callable[[Tensor], Any]) -> None:
    model, plain = tapped(lambda: TwoInputs(returns)), tapped(TwoInputs)
    for roles in (("logits",), ("logits", "embedding")):
        assert torch.equal(model.tap(GIVEN["dict"], roles)["logits"], plain(GIVEN["dict"]))
    assert torch.equal(model(GIVEN["dict"]), plain(GIVEN["dict"]))


@pytest.mark.parametrize(
    ("returns", "said"),
    [
        (lambda logits: (logits.sum(), logits), "tuple of (), (4, 5)"),
        (lambda logits: {"hidden": logits, "more": None}, "dict with hidden: (4, 5), more: NoneType"),
        (lambda logits: SimpleNamespace(scores=logits), "SimpleNamespace"),
        (lambda logits: [], "list of nothing"),
    ],
)  # fmt: skip
def test_where_there_are_no_logits_it_says_what_there_is(
    returns: Callable[[Tensor], Any], said: str, refused: Any
) -> None:
    model = tapped(lambda: TwoInputs(returns))
    for run in (model, model.tap):
        with refused("TwoInputs returns no logits in train mode", said, "'logits'"):
            run(GIVEN["dict"])
    assert model.tap(GIVEN["dict"], ("embedding",))["embedding"].shape == (4, 4)  # which needs none


def test_inputs_without_a_tensor_are_refused(refused: Any) -> None:
    with refused("no input is a tensor", "dict"):
        tapped(TwoInputs).tap({"pixels": None}, ("stage1",))


def test_no_network_runs_what_was_compiled_for_another(tiny_model: Callable[..., Tapped]) -> None:
    torch.compiler.reset()
    pixels, roles = torch.rand(4, 1, 8, 8), ("logits", "stage1")

    def check(model: Tapped, roles: Sequence[str]) -> None:
        expected = model.eval().tap(pixels, roles)
        model.compile(backend="eager")
        compiled = model.tap(pixels, roles)
        assert all(torch.equal(compiled[role], expected[role]) for role in roles)

    for width in range(3, 12):  # more than torch keeps of one function
        check(tiny_model(width=width), roles)
    check(tiny_model(1), ("logits",))  # without hooks
    check(tiny_model(2), roles)
