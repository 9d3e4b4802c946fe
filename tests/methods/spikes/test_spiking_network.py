"""Spiking networks: neurons in closed form, the encoder, their state, their names, and their ONNX export."""

from __future__ import annotations

import copy
import gc
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tutelage.attacks import PGD
from tutelage.methods.spikes.networks.snn import SpikingNetwork
from tutelage.methods.spikes.neurons import LIF, RateCoding, rate_code
from tutelage.models.export import export_onnx
from tutelage.models.load import make_model
from tutelage.models.random_state import fixed_draws
from tutelage.models.surgery import reapply
from tutelage.models.tapped import Tapped

NAMES = ["snn8-6", "snn-conv2-9"]


def network(name: str = "snn8-6", seed: int = 0) -> SpikingNetwork:
    """With larger weights than the initial ones, so that it spikes in few steps."""
    torch.manual_seed(seed)
    module = make_model(name, num_classes=4, input_shape=(1, 8, 8)).module
    assert isinstance(module, SpikingNetwork)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(6)
    return module


def spikes_of(current: float, beta: float = 0.5, steps: int = 40) -> list[int]:
    """The steps, from 1, in which a neuron with this constant input spikes."""
    out = LIF(beta)(torch.full((steps, 1, 1), current, dtype=torch.float64)).flatten()
    return [step + 1 for step in range(steps) if out[step] == 1]


def reference(currents: Tensor, beta: float) -> Tensor:
    """The neuron's equation in plain loops."""
    out = torch.zeros_like(currents)
    for b in range(currents.shape[1]):
        for c in range(currents.shape[2]):
            potential = spike = 0.0
            for t in range(currents.shape[0]):
                potential = beta * potential + currents[t, b, c].item() - spike
                spike = float(potential > 1)
                out[t, b, c] = spike
    return out


def test_closed_forms_of_the_neuron() -> None:
    assert spikes_of(0.4) == []  # the limit is 0.4 / (1 - 0.5) = 0.8
    assert spikes_of(0.6)[0] == 3  # 0.6, 0.9, 1.05
    assert spikes_of(2.5, steps=6) == [1, 2, 3, 4, 5, 6]
    assert spikes_of(1.0, beta=0.0) == []  # the potential must exceed 1


def test_neurons_follow_their_equation() -> None:
    currents = torch.randn(20, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = reference(currents, 0.5)
    assert torch.equal(LIF(0.5)(currents), expected)
    assert 0.05 < expected.mean() < 0.95


def test_silent_neurons_have_a_gradient() -> None:
    """1 / (1 + 25 |u - 1|)^2 at u = 0.25, in the only step."""
    current = torch.full((1, 1, 1), 0.25, dtype=torch.float64, requires_grad=True)
    out = LIF()(current)
    out.sum().backward()
    assert out.sum() == 0
    assert current.grad is not None
    assert current.grad.item() == pytest.approx(1 / (1 + 25 * 0.75) ** 2)


def test_each_pass_begins_at_potential_0() -> None:
    """A second pass of the same spikes is bit-identical; without a reset the potential would remain."""
    model = network().train()
    trains = rate_code(torch.rand(3, 1, 8, 8), 6)
    first = model(trains)
    first.sum().backward()
    assert torch.equal(model(trains), first)
    copy.deepcopy(model)  # no graph of a pass remains in it
    currents = torch.full((2, 1, 1), 0.6)
    layer = LIF(0.5)
    both = [layer(currents).sum() for _ in range(2)]
    assert both == [0, 0]
    assert layer(torch.cat([currents, currents])).sum() == 1


def test_networks_are_not_kept_in_memory() -> None:
    """The library has a list of all its neurons."""
    module = network()
    neuron = weakref.ref(module.neurons[0])
    del module
    gc.collect()
    assert neuron() is None


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_counts(name: str) -> None:
    model = Tapped(network(name)).eval()
    images = torch.rand(5, 1, 8, 8)
    with fixed_draws(model):
        outputs = model.tap(images, ("logits", "spikes", "hidden_spikes", "activity"))
    steps = model.module.steps
    assert outputs["spikes"].shape == (5, steps, 4)
    assert set(outputs["spikes"].unique().tolist()) <= {0.0, 1.0}
    torch.testing.assert_close(outputs["logits"], outputs["spikes"].sum(1))
    activity = outputs["activity"]
    torch.testing.assert_close(activity[:, -1], outputs["logits"].sum(1))
    torch.testing.assert_close(activity[:, -2], outputs["hidden_spikes"].sum((1, 2)))
    assert activity.shape == (5, len(model.module.layers))  # type: ignore[arg-type]
    assert (activity[:, :-1].sum(1) > 0).all()


@pytest.mark.parametrize("steps", [9, 10, 16, 17])
def test_spike_trains_are_no_patches_of_an_image(steps: int) -> None:
    """The steps are as many as a square grid has patches, with or without a class token."""
    model = Tapped(network(f"snn8-{steps}"))
    assert model.tap(torch.rand(2, 1, 8, 8), ("spikes", "hidden_spikes"))["hidden_spikes"].shape == (2, steps, 8)


def test_pixels_are_not_normalised_and_spike_trains_are_used_as_they_are() -> None:
    model = Tapped(network(), [0.4], [0.3])
    assert model.has_normalisation((0.0,), (1.0,))
    images = torch.rand(3, 1, 8, 8)
    torch.manual_seed(5)
    trains = rate_code(images, 6)
    torch.manual_seed(5)
    assert torch.equal(model(images), model(trains))


@pytest.mark.parametrize(
    "operation",
    [
        {"operation": "branch", "at": "neurons.0", "branches": 2, "combine": "mean"},
        {"operation": "beside", "networks": ["snn4"]},
        {"operation": "heads", "kind": "fusion", "layers": ["layers.0"]},
    ],
    ids=lambda operation: operation["operation"],
)
def test_networks_around_a_spiking_one_take_pixels_as_well(operation: dict[str, Any]) -> None:
    images = torch.rand(2, 1, 8, 8)
    whole = reapply(network("snn-conv2-6"), [operation], images)
    assert Tapped(whole, (0.5,), (0.2,)).normalised(images) is images
    assert Tapped(copy.deepcopy(whole), (0.5,), (0.2,)).normalised(images) is images


def test_spiking_networks_beside_others_are_refused(refused: Any) -> None:
    with refused("SpikingNetwork takes pixels and ResNet normalised images", "networks of one kind"):
        reapply(network(), [{"operation": "beside", "networks": ["resnet8x0.5"]}], torch.rand(2, 1, 8, 8))


def test_rates_of_the_encoding() -> None:
    torch.manual_seed(0)
    pixels = torch.linspace(0, 1, 11)[None]
    trains = rate_code(pixels, 4000)
    assert trains.shape == (1, 4000, 11)
    sigma = (pixels * (1 - pixels) / 4000).sqrt()
    assert ((trains.mean(1) - pixels).abs() <= 3 * sigma).all()
    assert torch.equal(trains[0, :, [0, 10]], torch.tensor([[0.0, 1.0]]).expand(4000, 2))
    correlation = torch.corrcoef(trains[0, :, 1:10].T) - torch.eye(9)
    assert correlation.abs().max() < 4 / 4000**0.5
    assert abs(torch.corrcoef(torch.stack([trains[0, :-1, 5], trains[0, 1:, 5]]))[0, 1]) < 4 / 4000**0.5
    images = torch.rand(2, 3, 4, 4)
    torch.manual_seed(1)
    expected = rate_code(images, 3)
    torch.manual_seed(1)
    assert torch.equal(rate_code(images.to(memory_format=torch.channels_last), 3), expected)


def test_encoding_has_no_gradient_and_declares_one_for_attacks() -> None:
    layer = RateCoding(5)
    images = torch.rand(2, 1, 3, 3, requires_grad=True)
    assert not layer(images).requires_grad
    layer.surrogates["rate"](images).sum().backward()
    assert torch.equal(images.grad, torch.full_like(images, 5))  # type: ignore[arg-type]


def test_attacks_lower_the_output_of_the_label() -> None:
    model = Tapped(network("snn32-12", seed=3)).eval()
    images = 0.3 + 0.4 * torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with fixed_draws(model):
        labels = model(images).argmax(1)
        attacked = PGD(radius=0.2, steps=5, draws=4)(model, images, labels, torch.Generator().manual_seed(1))
    before, after = (
        torch.stack([model(batch).gather(1, labels[:, None]).mean() for _ in range(10)]).mean()
        for batch in (images, attacked)
    )
    assert after < before - 0.2


@pytest.mark.parametrize("name", NAMES)
def test_onnx_export_encodes_and_counts(name: str, tmp_path: Path) -> None:
    """Black and white pixels have no randomness; the mean count of grey ones is that of the network."""
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    onnxruntime: Any = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    model = Tapped(network(name)).eval()
    export_onnx(model, (1, 8, 8), tmp_path / "student.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "student.onnx"), providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(2)
    binary = (torch.rand(7, 1, 8, 8, generator=generator) < 0.5).float()
    for count in (1, 7):
        (logits,) = session.run(None, {"pixels": binary[:count].numpy()})
        assert torch.equal(torch.from_numpy(logits), model(binary[:count]).detach())
    assert (logits.max(0) > 0).sum() >= 2
    grey = torch.rand(1, 1, 8, 8, generator=generator).repeat(600, 1, 1, 1)
    (drawn,) = session.run(None, {"pixels": grey.numpy()})
    own = model(grey).detach()
    assert drawn.std(0).max() > 0
    torch.testing.assert_close(torch.from_numpy(drawn).mean(0), own.mean(0), rtol=0, atol=0.25)


def test_names_select_sizes() -> None:
    assert network("snn8").steps == 12
    assert network("snn8-25").steps == 25
    assert sum(p.numel() for p in network("snn8").parameters()) == 8 * 65 + 4 * 9
    assert [tuple(p.shape) for p in network("snn-conv2-9").parameters() if p.ndim == 4] == [(2, 1, 3, 3), (4, 2, 3, 3)]


@pytest.mark.parametrize("name", ["snn0", "snn8-0", "snn-conv0"])
def test_networks_without_neurons_or_steps_are_refused(name: str, refused: Any) -> None:
    with refused("1 or more neurons and time steps", "snn64-12"):
        network(name)


def test_missing_library(monkeypatch: pytest.MonkeyPatch, refused: Any) -> None:
    monkeypatch.setitem(sys.modules, "snntorch", None)
    with refused("'snn' needs", "tutelage[snn]"):
        network()
