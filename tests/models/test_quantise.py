"""The operation quantise: which layers, bits, files, gradients, export."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.models.branching import EXAMPLE, Overwriting, zoo_network
from tests.models.test_export import needs_onnx
from tests.token_network import TokenNetwork
from tutelage.data import Data
from tutelage.models.export import export_onnx
from tutelage.models.quantised import QuantisedConv2d, QuantisedLinear, quantised_layers
from tutelage.models.surgery import applied_operations, reapply
from tutelage.models.surgery.quantise import apply, quantisable
from tutelage.models.tapped import Tapped
from tutelage.models.weights import save_weights
from tutelage.runs.models import load_student

IMAGES = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("make", [zoo_network("resnet8x0.25"), zoo_network("wrn-10-1"), Overwriting, TokenNetwork])
def test_layers_names_and_bits(make: Callable[[], nn.Module]) -> None:
    network = make()
    original = copy.deepcopy(network).eval()
    names = quantisable(network, EXAMPLE)
    assert names == [n for n in names if type(original.get_submodule(n)) in (nn.Conv2d, nn.Linear)]
    assert apply(network, EXAMPLE, bits=3, groups=2) is network
    layers = quantised_layers(network)
    assert set(layers) == set(names)
    assert len(layers) > 2
    assert {n: layer.bits for n, layer in layers.items()} == {n: 8 if n in (names[0], names[-1]) else 3 for n in names}
    state = network.state_dict()
    assert all(torch.equal(state[key], value) for key, value in original.state_dict().items())
    added = set(state) - set(original.state_dict())
    assert added == {f"{n}.{key}" for n in names for key in ("weight_scale", "weight_gain", "weight_group")}
    difference = (network.eval()(IMAGES) - original(IMAGES)).abs().max()
    assert 0 < float(difference.detach()) < 3


def test_eight_bits_are_close_and_two_bits_are_not() -> None:
    original = zoo_network("resnet8x0.25")().eval()
    expected = original(IMAGES)
    errors = []
    for bits in (8, 4, 2):
        network = apply(copy.deepcopy(original), IMAGES, bits=bits, activation_bits=bits)
        errors.append(float(((network(IMAGES) - expected).square().mean() / expected.var()).detach()))
    assert errors == sorted(errors)
    assert errors[0] < 1e-3 < errors[2]


def test_record_rebuilds_the_network(tmp_path: Path, tiny_data: Data) -> None:
    """Also from constant inputs: the ranges of activations come from the file."""
    torch.manual_seed(0)
    network = apply(zoo_network("resnet8x0.25")(), IMAGES, bits=2, groups=3, edge_bits=6, activation_bits=4)
    (entry,) = applied_operations(network)
    assert {key: entry[key] for key in ("operation", "bits", "groups", "edge_bits", "activation_bits")} == {
        "operation": "quantise",
        "bits": 2,
        "groups": 3,
        "edge_bits": 6,
        "activation_bits": 4,
    }
    assert entry["layers"] == list(quantised_layers(network))
    with torch.no_grad():
        for layer in quantised_layers(network).values():
            layer.weight_gain.mul_(1.1)
            layer.input_gain.mul_(0.9)
    save_weights(tmp_path / "s.safetensors", network, {"surgery": applied_operations(network)})
    torch.manual_seed(1)
    rebuilt = load_student(tmp_path / "s.safetensors", zoo_network("resnet8x0.25")(), tiny_data)
    assert torch.equal(rebuilt.eval()(IMAGES), network.eval()(IMAGES))
    again = reapply(zoo_network("resnet8x0.25")(), applied_operations(network), EXAMPLE)
    again.load_state_dict(network.state_dict())
    assert torch.equal(again.eval()(IMAGES), network(IMAGES))


def test_copies_hooks_and_shared_layers_remain() -> None:
    network = Overwriting().eval()
    calls: list[Any] = []
    network.twice.register_forward_hook(lambda *_: calls.append(1))
    apply(network, IMAGES, activation_bits=8)
    other = copy.deepcopy(network)
    assert torch.equal(other(IMAGES), network(IMAGES))
    assert len(calls) == 2 + 2 + 4  # the trace, the ranges, two networks
    with torch.no_grad():
        other.conv1.weight.zero_()
    assert float(network.conv1.weight.abs().max().detach()) > 0


@pytest.mark.parametrize("activation_bits", [0, 4])
def test_gradients_reach_weights_and_scales(activation_bits: int) -> None:
    torch.manual_seed(0)
    network = zoo_network("resnet8x0.25")()
    for _ in range(20):  # ranges of activations are those of eval mode
        network(IMAGES)
    apply(network, IMAGES, bits=3, activation_bits=activation_bits).train()
    gains = [value for key, value in network.named_parameters() if key.endswith("_gain")]
    optimizer = torch.optim.SGD(network.parameters(), 0.05)
    losses = []
    for _ in range(12):
        loss = nn.functional.cross_entropy(network(IMAGES), torch.arange(16) % 4)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
        losses.append(float(loss.detach()))
        optimizer.step()
    assert losses[-1] < losses[0] - 0.2
    assert all(bool((gain != 1).any()) and bool(((gain - 1).abs() < 0.1).all()) for gain in gains)


def test_half_precision_rounds_in_float32() -> None:
    torch.manual_seed(0)
    network = apply(zoo_network("resnet8x0.25")(), IMAGES, bits=4, activation_bits=8).eval()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        output = network(IMAGES)
    exact = network(IMAGES).detach()
    assert float((output - exact).abs().max() / exact.abs().max()) < 0.2


class Mixed(nn.Module):
    """Layers of other types, and one that does not run."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.unused = nn.Conv2d(1, 3, 3), nn.Linear(2, 2)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(3, 5))
        self.other, self.last = nn.Conv1d(1, 2, 2), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.normed(self.first(x).mean((2, 3)))
        return self.last(self.other(x[:, None]).flatten(1))  # type: ignore[no-any-return]


def test_other_layers_stay_float() -> None:
    network = apply(Mixed(), EXAMPLE)
    assert list(quantised_layers(network)) == ["first", "last"]
    assert isinstance(network.first, QuantisedConv2d)
    assert isinstance(network.last, QuantisedLinear)
    assert type(network.unused) is nn.Linear
    chosen = apply(Mixed(), EXAMPLE, layers=["last"], bits=3, edge_bits=5)
    assert {name: layer.bits for name, layer in quantised_layers(chosen).items()} == {"last": 5}
    assert chosen(EXAMPLE).shape == (2, 4)


def test_invalid_settings_are_refused(refused: Any) -> None:
    for settings, pieces in (
        ({"bits": 1}, ("bits", "2 to 8", "got 1")),
        ({"bits": 9}, ("bits", "got 9")),
        ({"bits": 2.5}, ("bits", "got 2.5")),
        ({"edge_bits": 16}, ("edge_bits", "got 16")),
        ({"activation_bits": 1}, ("activation_bits", "0 for float", "got 1")),
        ({"groups": 0}, ("groups", "got 0")),
        ({"layers": ["nowhere"]}, ("nowhere", "nn.Conv2d", "conv1")),
        ({"layers": ["bn1"]}, ("bn1",)),
        ({"layers": []}, ("nothing can be quantised",)),
    ):
        with refused(*pieces):
            apply(zoo_network("resnet8x0.25")(), EXAMPLE, **settings)  # type: ignore[arg-type]
    with refused("does not run", "unused"):
        apply(Mixed(), EXAMPLE, layers=["first", "unused"], activation_bits=4)
    with refused("no nn.Conv2d or nn.Linear"):
        apply(nn.Flatten(), EXAMPLE)
    with refused("quantised already"):
        apply(apply(Mixed(), EXAMPLE), EXAMPLE)


@pytest.mark.parametrize("activation_bits", [0, 8])
def test_onnxruntime_logits_equal_torch(activation_bits: int, tmp_path: Path) -> None:
    onnxruntime = needs_onnx()
    torch.manual_seed(0)
    network = apply(Overwriting(), IMAGES, bits=3, groups=2, activation_bits=activation_bits)
    model = Tapped(network, [0.4], [0.3]).eval()
    export_onnx(model, (1, 8, 8), tmp_path / "s.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "s.onnx"), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"pixels": IMAGES.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), model(IMAGES).detach(), rtol=1e-4, atol=1e-4)
