"""The bottleneck: its shapes, what trains, and the two halves of a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.tasks.scenes import scene_data
from tutelage.config import Hardware, Recipe
from tutelage.data import Data
from tutelage.methods.ghnd import ghnd
from tutelage.methods.ghnd.codec import Codec
from tutelage.methods.ghnd.split import SplitNetwork
from tutelage.methods.ghnd.surgery.bottleneck import Bottleneck, apply
from tutelage.models.networks.centre import CentreNet
from tutelage.models.surgery import applied_operations, reapply
from tutelage.models.tapped import Tapped
from tutelage.terms import Hint
from tutelage.training import Run

Refused = Callable[..., Any]


def detector(seed: int = 0, width: float = 0.0625) -> Tapped:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Tapped(CentreNet(10, 2, 1, width), [0.4], [0.2])


def run_of(data: Data, on_cpu: Hardware, teacher: Tapped, **recipe: Any) -> Run:
    options = Recipe(**{"epochs": 2, "batch_size": 16} | recipe)
    return Run(data, lambda: detector(5), [teacher], recipe=options, hardware=on_cpu, seed=3)


def test_layers_of_the_paper() -> None:
    bottleneck = Bottleneck(64, 256, 3).eval()
    x = torch.randn(2, 64, 56, 56)
    code = bottleneck.encoder(x)
    assert code.shape == (2, 3, 60, 60)
    assert bottleneck.decoder(code).shape == bottleneck(x).shape == (2, 256, 56, 56)
    convolutions = [m for m in bottleneck.modules() if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels) for m in convolutions] == [
        *((64, 64), (64, 256), (256, 64), (64, 3)),
        *((3, 64), (64, 128), (128, 256), (256, 256)),
    ]
    assert {(m.kernel_size, m.stride, m.bias) for m in convolutions} == {((2, 2), (1, 1), None)}
    assert [m.padding for m in convolutions] == [(1, 1)] * 4 + [(0, 0)] * 4
    assert not isinstance(bottleneck.encoder[-1], nn.BatchNorm2d | nn.ReLU)


def test_other_keys_roles_and_layers_are_unchanged_and_the_operation_is_repeated() -> None:
    model = detector()
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    images = torch.rand(2, 1, 64, 64)
    apply(model.module, images, layer="stage1", channels=6, bits=16)
    model = model.rewrapped()
    after = model.module.state_dict()
    remaining = {name for name in before if not name.startswith("stage1.")}
    assert remaining == {name for name in after if not name.startswith("stage1.")}
    assert all(torch.equal(before[name], after[name]) for name in remaining)
    outputs = model.tap(images, ("stage1", "stage2", "stage4", "embedding", "stem"))
    assert outputs["stage1"].shape == (2, 4, 16, 16)
    again = reapply(detector(9).module, applied_operations(model.module), images)
    again.load_state_dict(after)
    torch.testing.assert_close(again.eval()(images), model.module.eval()(images))
    codec = again.get_submodule("stage1.codec")
    assert isinstance(codec, Codec)
    assert codec.bits == 16


@pytest.mark.parametrize("name", ["resnet8x0.25", "wrn-10-1"])
def test_stages_of_a_classifier_are_those_before(name: str) -> None:
    from tests.runs.pairs import zoo_network

    model = zoo_network(name)()
    images = torch.rand(2, 1, 16, 16)
    shapes = {role: v.shape for role, v in model.tap(images, ("stem", "stage1", "stage2", "stage3")).features.items()}
    layer = model.taps["stage1"].layer
    apply(model.module, images, layer=layer, channels=3)
    model = model.rewrapped()
    after = model.tap(images, tuple(shapes)).features
    assert {role: value.shape for role, value in after.items()} == shapes


def test_layers_that_cannot_be_replaced_are_refused(refused: Refused) -> None:
    images = torch.rand(2, 1, 64, 64)
    with refused("stage2", "(16, 16) to (8, 8)", "keeps the resolution"):
        apply(detector().module, images, layer="stage2", channels=3)
    with refused("layer to replace", "stage9"):
        apply(detector().module, images, layer="stage9", channels=3)
    with refused("a channel or more", "0"):
        apply(detector().module, images, layer="stage1", channels=0)


def test_distance_is_zero_with_the_original_stage_and_that_of_late_stages_reaches_the_encoder() -> None:
    teacher, student = detector(1), detector(1)
    images = torch.rand(2, 1, 64, 64)
    stages = tuple(f"stage{k}" for k in range(1, 5))
    teacher.eval()
    outputs = teacher.tap(images, stages)
    terms = {role: Hint(role, role, "paper", "never") for role in stages}
    for term in terms.values():
        term.build(student.eval().tap(images, stages), outputs)
    equal = student.tap(images, stages)
    assert all(float(term(equal, outputs, None).detach().abs().max()) == 0 for term in terms.values())
    apply(student.module, images, layer="stage1", channels=3)
    student = student.rewrapped()
    student.train()
    changed = student.tap(images, stages)
    value = 2 * terms["stage4"](changed, outputs, None)
    expected = (changed["stage4"] - outputs["stage4"]).square().flatten(1).sum(1)
    torch.testing.assert_close(value, expected)
    value.sum().backward()
    bottleneck = student.module.get_submodule("stage1")
    assert isinstance(bottleneck, Bottleneck)
    assert all(
        float(p.grad.abs().sum()) > 0 for p in bottleneck.encoder.parameters() if p.grad is not None and p.ndim > 1
    )
    assert all(p.grad is not None for p in bottleneck.encoder.parameters())
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize(("stem", "loss"), [(True, "ghnd"), (False, "hnd"), (True, "labels")])
def test_nothing_but_the_bottleneck_and_the_stem_changes(
    stem: bool, loss: Any, on_cpu: Hardware, state_of: Any
) -> None:
    data, teacher = scene_data(48, 8, 32), detector(2)
    teacher(torch.rand(16, 1, 32, 32))  # other statistics than those of a new network
    before = state_of(teacher)
    student = ghnd(run_of(data, on_cpu, teacher, epochs=4), train_stem=stem, loss=loss)
    after = state_of(student)
    moved = {
        n for n in before if n in after and not n.startswith("module.stage1.") and not torch.equal(before[n], after[n])
    }
    convolutions = {"module.stem.0.weight", "module.stem.3.weight"}
    assert moved == (convolutions if stem else set())
    assert all(torch.equal(value, state_of(teacher)[name]) for name, value in before.items())
    statistics = student.module.get_submodule("stage1.encoder.1")
    assert isinstance(statistics, nn.BatchNorm2d)
    assert int(statistics.num_batches_tracked or 0) == 4 * 3


def test_distillation_brings_the_stages_closer_and_notes_the_bytes(on_cpu: Hardware) -> None:
    data, teacher = scene_data(64, 8, 32), detector(2)
    run = run_of(data, on_cpu, teacher, epochs=12)
    student = ghnd(run, lr=0.01, channels=6)
    history = run.fits[0].history
    for role in ("stage1", "stage4"):
        values = [record["learners"]["student"][role] for record in history]
        assert values[-1] < 0.7 * values[0]
    assert "validation_ap" in history[0]["learners"]["student"]
    (message,) = SplitNetwork(student).send(torch.rand(1, 1, 32, 32))
    assert message is not None
    assert run.notes["payload_bytes"] == len(message) == 6 * 12 * 12 + 5
    assert run.notes["payload_shape"] == [6, 12, 12]
    operations = run.notes["flops"]
    assert 0 < operations["head"] < operations["head"] + operations["tail"] < 3 * operations["teacher"]
    assert run.notes["jpeg_bytes"] > 300


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_halves_return_what_the_network_returns(bits: int) -> None:
    model = detector(3)
    images = torch.rand(3, 1, 48, 48)
    apply(model.module, images, layer="stage1", channels=3, bits=bits)
    halves = SplitNetwork(model.rewrapped())
    messages = halves.send(images)
    model.eval()
    with torch.no_grad():  # one at a time: a last digit that depends on the batch can change a rounded value
        expected = torch.cat([model(image[None]) for image in images])
        torch.testing.assert_close(halves.receive(messages, images), expected, atol=1e-5, rtol=1e-5)
    assert not halves.bottleneck.codec._forward_hooks


class Bypassed(nn.Module):
    """A classifier whose last layer also reads the stem."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stage1 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.roles = {"stem": "stem", "stage1": "stage1"}
        self.fc = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stem = self.stem(x)
        return self.fc((self.stage1(stem) + stem).mean((2, 3)))  # type: ignore[no-any-return]


def test_a_path_around_the_bottleneck_is_refused(tiny_data: Data, on_cpu: Hardware, refused: Refused) -> None:
    run = Run(tiny_data, lambda: Tapped(Bypassed()), [Tapped(Bypassed())], recipe=Recipe(epochs=1), hardware=on_cpu)
    with refused("Bypassed cannot be cut at 'stage1'", "around"):
        ghnd(run)


def test_other_students_and_stages_are_refused(on_cpu: Hardware, refused: Refused) -> None:
    data = scene_data(16, 8, 32)
    with refused("is another network than the teacher"):
        ghnd(run_of(data, on_cpu, detector(0, width=0.125)))
    with refused("no stage7"):
        ghnd(run_of(data, on_cpu, detector()), stage=7)
    with refused("0 bottlenecks"):
        SplitNetwork(detector())
