"""Masked weights: exactly zero under every optimiser, the same keys, files, ONNX, and errors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.models.export import export_onnx
from tutelage.models.surgery import applied_operations, reapply
from tutelage.models.surgery.mask import Masked, apply
from tutelage.models.surgery.resize import apply as resize
from tutelage.models.tapped import Tapped
from tutelage.models.weights import load_weights, save_weights

Refused = Callable[..., AbstractContextManager[None]]
EXAMPLE = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
CONV = {"layer": "1", "outputs": [2, 1], "inputs": [1, 3], "keep": [1, 0, 0, 1]}
LINEAR = {"layer": "4", "outputs": [1, 2, 2], "inputs": [50, 25], "keep": [0, 1, 1, 0, 0, 0]}


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 2), nn.Conv2d(4, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(75, 5))


def masked(seed: int = 0) -> nn.Sequential:
    model = network(seed)
    for settings in (CONV, LINEAR):
        apply(model, EXAMPLE, **settings)  # type: ignore[arg-type]
    return model


def cut_weights(module: nn.Module) -> Tensor:
    """The weights that ``CONV`` and ``LINEAR`` fix at zero, found by their indices."""
    conv, linear = module.get_parameter("1.weight"), module.get_parameter("4.weight")
    parts = [conv[:2, 1:], conv[2:, :1], linear[:1, :50], linear[1:3, 50:], linear[3:]]
    return torch.cat([part.flatten() for part in parts]).detach()


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_cut_weights_are_exactly_zero_after_steps(optimizer: str) -> None:
    model = masked()
    before = copy.deepcopy(model.state_dict())
    steps = OPTIMIZERS[optimizer](model.parameters())
    for _ in range(8):
        steps.zero_grad()
        model(EXAMPLE).square().sum().backward()
        steps.step()
    assert torch.equal(cut_weights(model), torch.zeros_like(cut_weights(model)))
    for key in ("1.weight", "4.weight"):
        moved, was = model.state_dict()[key], before[key]
        assert (moved != was)[was != 0].float().mean() > 0.5  # the others are trained


def test_optimizer_with_momentum_of_the_dense_network_does_not_move_them() -> None:
    """The mask acts in the forward pass, also where the stored weights are no longer zero."""
    model = network()
    steps = OPTIMIZERS["sgd"](model.parameters())
    F.cross_entropy(model(EXAMPLE), torch.arange(6) % 5).backward()
    steps.step()
    apply(model, EXAMPLE, **CONV)  # type: ignore[arg-type]
    apply(model, EXAMPLE, **LINEAR)  # type: ignore[arg-type]
    F.cross_entropy(model(EXAMPLE), torch.arange(6) % 5).backward()
    steps.step()
    assert cut_weights(model).abs().max() > 0
    output = model(EXAMPLE)
    for settings in (CONV, LINEAR):
        apply(model, EXAMPLE, **settings)  # type: ignore[arg-type]
    assert cut_weights(model).abs().max() == 0
    assert torch.equal(model(EXAMPLE), output)


def test_output_and_gradient_are_those_of_the_product() -> None:
    dense, model = network().double(), masked().double()
    pixels = EXAMPLE.double()
    masks = {name: module.mask for name, module in model.named_modules() if isinstance(module, Masked)}
    hidden = F.conv2d(dense[0](pixels), dense[1].weight * masks["1"], dense[1].bias).relu()
    expected = F.linear(hidden.flatten(1), dense[4].weight * masks["4"], dense[4].bias)
    torch.testing.assert_close(model(pixels), expected)
    expected.square().sum().backward()
    model(pixels).square().sum().backward()
    for (name, parameter), other in zip(model.named_parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, msg=name)


def test_groups_of_a_grouped_convolution_are_those_of_its_weights() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.Flatten(), nn.LazyLinear(3))
    model(torch.zeros(1, 4, 8, 8))
    apply(model, EXAMPLE, layer="0", outputs=[3, 3], inputs=[2], keep=[1, 0])
    weight = model.get_parameter("0.weight")
    assert (weight[3:] == 0).all()
    assert (weight[:3] != 0).all()
    assert model(torch.randn(2, 4, 8, 8)).shape == (2, 3)


def test_keys_are_those_of_the_network_and_its_weights_fit_it(tmp_path: Path) -> None:
    model, plain = masked(), network(1)
    assert list(model.state_dict()) == list(plain.state_dict())
    save_weights(tmp_path / "w.safetensors", model, {"surgery": applied_operations(model)})
    load_weights(tmp_path / "w.safetensors", plain)
    torch.testing.assert_close(plain(EXAMPLE), model(EXAMPLE))


def test_it_is_rebuilt_from_its_record_and_copied() -> None:
    model = masked()
    rebuilt = reapply(network(1), applied_operations(model), EXAMPLE)
    assert applied_operations(rebuilt) == applied_operations(model)
    rebuilt.load_state_dict(model.state_dict())
    assert torch.equal(rebuilt(EXAMPLE), model(EXAMPLE))
    rebuilt.load_state_dict(network().state_dict())  # even with weights that are not zero
    torch.testing.assert_close(rebuilt(EXAMPLE), masked()(EXAMPLE))
    copied = copy.deepcopy(model)
    assert applied_operations(copied) == applied_operations(model)
    apply(copied, EXAMPLE, layer="4", outputs=[5], inputs=[75], keep=[0])
    assert not torch.equal(copied(EXAMPLE), model(EXAMPLE))


def test_masks_of_a_layer_multiply() -> None:
    model = masked()
    apply(model, EXAMPLE, layer="4", outputs=[5], inputs=[25, 50], keep=[0, 1])
    weight = model.get_parameter("4.weight")
    assert (weight[:, :25] == 0).all()
    assert (cut_weights(model) == 0).all()
    assert (weight[1:3, 25:50] != 0).all()
    rebuilt = reapply(network(), applied_operations(model), EXAMPLE)
    torch.testing.assert_close(rebuilt(EXAMPLE), model(EXAMPLE))


def test_other_layouts_and_precisions() -> None:
    model = masked()
    expected = model(EXAMPLE).detach()
    nhwc = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.testing.assert_close(nhwc(EXAMPLE.to(memory_format=torch.channels_last)).detach(), expected)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(EXAMPLE).float().detach(), expected, rtol=0.1, atol=0.1)
    torch.testing.assert_close(model.double()(EXAMPLE.double()).float().detach(), expected)


def test_onnx_file_computes_the_same(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    model = Tapped(masked(), [0.4], [0.3])
    for settings in (CONV, LINEAR):  # weights that only the mask makes zero
        with torch.no_grad():
            model.module.get_parameter(f"{settings['layer']}.weight").add_(0.1)
    export_onnx(model, (1, 8, 8), tmp_path / "student.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "student.onnx"), providers=["CPUExecutionProvider"])
    pixels = torch.rand(5, 1, 8, 8)
    (logits,) = session.run(None, {"pixels": pixels.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), model(pixels).detach(), rtol=1e-5, atol=1e-5)


def test_invalid_settings_are_refused(refused: Refused) -> None:
    def attempt(**changes: Any) -> None:
        apply(network(), EXAMPLE, **{**LINEAR, **changes})

    with refused("layer to mask", "fc"):
        attempt(layer="fc")
    with refused("layer '2' is a ReLU", "nn.Linear"):
        attempt(layer="2")
    with refused("has 75 inputs", "sum to 74"):
        attempt(inputs=[50, 24])
    with refused("has 5 outputs", "sum to 5"):
        attempt(outputs=[0, 2, 3])
    with refused("3 x 2 groups", "has 5 values"):
        attempt(keep=[1, 1, 1, 1, 0])
    with refused("needs 0 or 1", "[0, 1, 2]"):
        attempt(keep=[0, 1, 2, 1, 0, 1])
    wide = nn.Sequential(nn.Linear(75, 75))
    with refused("5625 groups", "at most 4096", "larger groups"):
        apply(wide, EXAMPLE, layer="0", outputs=[1] * 75, inputs=[1] * 75, keep=[1] * 75**2)
    for value in (3, "all", [0, 0, 0, 0, 0, "x"]):
        with refused("mask"):
            reapply(network(), [{"operation": "mask", **LINEAR, "keep": value}], EXAMPLE)


def test_masked_layer_is_not_resized(refused: Refused) -> None:
    """The record of ``resize`` has only sizes, so that the mask of the smaller layer could not be rebuilt."""
    with refused("MaskedLinear", "before its weights are masked"):
        resize(masked(), EXAMPLE, layer="4", inputs=50, outputs=5)
