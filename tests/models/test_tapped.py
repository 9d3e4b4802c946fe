"""``Tapped``: normalisation, requested roles, side effects and structured inputs and outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.models.networks import (
    INPUTS,
    MEAN,
    STD,
    hooks,
    tapped_network,
)
from tutelage.models.inputs import normalise
from tutelage.models.networks.resnet import ResNet
from tutelage.models.tapped import Tapped

# --- normalisation and precision


def test_pixels_are_normalised_per_channel() -> None:
    model = Tapped(nn.Identity(), MEAN, STD)
    x = INPUTS.tolist()
    for channel, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
        expected = [[[(v - mean) / std for v in row] for row in sample[channel]] for sample in x]
        torch.testing.assert_close(model(INPUTS)[:, channel], torch.tensor(expected))
    assert torch.equal(Tapped(nn.Identity())(INPUTS), INPUTS)
    assert torch.equal(Tapped(nn.Identity(), (0.5,), (2.0,))(INPUTS), (INPUTS - 0.5) / 2)


def test_networks_that_take_pixels_are_not_normalised() -> None:
    network = nn.Identity()
    network.takes_pixels = True  # type: ignore[assignment]
    model = Tapped(network, MEAN, STD)
    assert model(INPUTS) is INPUTS
    assert model.with_normalisation(MEAN, STD).has_normalisation((0.0,), (1.0,))


@pytest.mark.parametrize("roles", [("logits",), ("logits", "stage1", "embedding"), ("stage1", "embedding")])
def test_outputs_are_float32_under_autocast(roles: tuple[str, ...]) -> None:
    model = tapped_network(lambda: ResNet(8, 5))
    with torch.autocast("cpu", torch.bfloat16):
        assert model(INPUTS).dtype == torch.bfloat16
        outputs = model.tap(INPUTS, roles)
    assert {outputs[role].dtype for role in roles} == {torch.float32}


# --- no side effects


def test_tap_returns_exactly_the_requested_roles() -> None:
    model = tapped_network(lambda: ResNet(8, 5))
    for roles in (["logits"], ["stage2"], ["stage2", "logits"], ["embedding", "stage1"], ["stage1", "stage1"]):
        outputs = model.tap(INPUTS, roles)
        assert (outputs.logits is not None) == ("logits" in roles)
        assert outputs.features.keys() == set(roles) - {"logits"}
    assert torch.equal(model.eval().tap(INPUTS)["logits"], model(INPUTS))


@pytest.mark.parametrize("roles", [["stage2"], ["stage2", "stage1"], ["stage1", "stage2"], ["stage2", "stage2"]])
def test_without_logits_later_layers_are_not_updated(roles: list[str], state_of: Any, changed: Any) -> None:
    model = tapped_network(lambda: ResNet(8, 5)).trace(INPUTS).train()
    before, full_copy = state_of(model), copy.deepcopy(model)
    outputs = model.tap(INPUTS, roles)
    updated_layers = {name.split(".")[1] for name in changed(before, state_of(model))}
    assert updated_layers == {"bn1", "layer1", "layer2"}
    counts = {n: int(b) for n, b in model.module.named_buffers() if n.endswith("num_batches_tracked")}
    assert counts == {name: int(not name.startswith("layer3")) for name in counts}

    outputs["stage2"].square().mean().backward()
    layers_with_gradient = {name.split(".")[0] for name, p in model.module.named_parameters() if p.grad is not None}
    assert layers_with_gradient == {"conv1", "bn1", "layer1", "layer2"}
    assert torch.equal(outputs["stage2"], full_copy.tap(INPUTS, ("logits", "stage2"))["stage2"])


def test_without_logits_later_layers_do_not_run() -> None:
    model = tapped_network(lambda: ResNet(8, 5)).trace(INPUTS)
    for name in ("layer3", "fc"):
        model.module.get_submodule(name).register_forward_pre_hook(lambda *_: pytest.fail("a later layer ran"))
    model.tap(INPUTS, ("stage1", "stage2"))


def test_each_call_returns_new_tensors() -> None:
    model, other = tapped_network(lambda: ResNet(8, 5)).eval(), INPUTS.flip(0, 2)
    first = model.tap(INPUTS, ("logits", "stage1"))
    first_stage = first["stage1"].detach().clone()
    second = model.tap(other, ("logits", "stage1"))
    assert first["stage1"] is not second["stage1"]
    assert torch.equal(first["stage1"], first_stage)
    assert not torch.allclose(second["stage1"], first_stage)
    (first["stage1"].sum() + second["stage1"].sum()).backward()  # through both graphs
    assert model.module.get_submodule("conv1").weight.grad is not None


def test_hooks_are_removed_after_the_call() -> None:
    model = tapped_network(lambda: ResNet(8, 5))
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
@pytest.mark.parametrize("failing_step", ["tracing", "running"])
def test_hooks_and_modes_are_restored_after_an_exception(
    failing_step: str, roles: tuple[str, ...], refused: Any
) -> None:
    model = tapped_network(lambda: ResNet(8, 5)).train()
    model.module.get_submodule("layer1").eval()
    modes = {name: module.training for name, module in model.named_modules()}
    if failing_step == "running":
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


def test_state_dict_keys_do_not_change(tiny_model: Callable[..., Tapped]) -> None:
    model, inputs = tiny_model(), torch.rand(2, 1, 8, 8)
    keys = list(type(model.module)().state_dict())
    for _ in range(2):
        model.tap(inputs, ("logits", "stage1"))
        assert list(model.module.state_dict()) == keys
        assert list(model.state_dict()) == [f"module.{key}" for key in keys]
        model.compile(backend="eager")


# --- inputs


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
    model = tapped_network(TwoInputs).eval()
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
    model, plain = tapped_network(lambda: TwoInputs(returns)), tapped_network(TwoInputs)
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
    model = tapped_network(lambda: TwoInputs(returns))
    for run in (model, model.tap):
        with refused("TwoInputs returns no logits in train mode", description, "'logits'"):
            run(INPUT_FORMS["dict"])
    assert model.tap(INPUT_FORMS["dict"], ("embedding",))["embedding"].shape == (4, 4)  # needs no logits


def test_inputs_without_a_tensor_raise(refused: Any) -> None:
    with refused("no input is a tensor", "dict"):
        tapped_network(TwoInputs).tap({"pixels": None}, ("stage1",))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(4, 3, 5, 7), (1, 3, 6, 6), (0, 3, 4, 4), (2, 3, 1, 1), (2, 3, 4, 1)])
@pytest.mark.parametrize("statistics", [(MEAN, STD), ((0.5,), (0.25,)), (MEAN, (0.25,))])
def test_normalised_values_and_strides_do_not_depend_on_the_layout(
    layout: torch.memory_format, shape: tuple[int, ...], statistics: Any
) -> None:
    """Bit for bit (x - mean) / std, in the layout of the images, with its gradient, for views of larger images too."""
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=layout)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in statistics)
    padded = torch.rand(shape[0], 3, shape[2] + 2, shape[3] + 2).contiguous(memory_format=layout)
    for x in (images, padded[:, :, 1:-1, 1:-1], images.double(), images.half()):
        expected = (x - mean) / std
        result = normalise(x, mean, std)
        assert torch.equal(result, expected)
        assert result.dtype == expected.dtype
        if x.is_contiguous(memory_format=layout):
            assert result.is_contiguous(memory_format=layout)
    leaf = images.clone(memory_format=torch.preserve_format).requires_grad_()
    normalise(leaf, mean, std).sum().backward()
    torch.testing.assert_close(leaf.grad, (1 / std).expand(1, 3, 1, 1).expand(shape))
    before = images.clone()
    normalise(images, mean, std)
    assert torch.equal(images, before)


def test_normalisation_of_samples_can_be_vectorised() -> None:
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (MEAN, STD))
    images = torch.rand(4, 3, 5, 6).contiguous(memory_format=torch.channels_last)
    one_by_one = torch.vmap(lambda x: normalise(x[None], mean, std)[0])(images)
    torch.testing.assert_close(one_by_one, normalise(images, mean, std))
