"""Every method on every pair of models, without looking into either."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tutelage.config import Hardware, Recipe
from tutelage.data import Data
from tutelage.data.loader import Batches
from tutelage.methods import find, installed
from tutelage.models.load import make_model
from tutelage.models.tapped import Tapped
from tutelage.models.weights import load_weights, save_weights
from tutelage.training import Run

RECIPE = Recipe(epochs=2, batch_size=16, lr=0.02)


class Mixer(nn.Module):
    """A transformer block's shape without its attention."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.across = nn.Linear(tokens, tokens)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.across(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return x + self.mlp(x)  # type: ignore[no-any-return]


class Vit(nn.Module):
    """Patches, a class token, blocks of one resolution, a head on the class token."""

    def __init__(self, classes: int = 4, width: int = 8) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList([Mixer(width, 17) for _ in range(4)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])  # type: ignore[no-any-return]


def by_hand(width: int = 4) -> Tapped:
    """Layers without names that tell anything, and their roles named by hand."""
    module = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(width, width, 3, stride=2, padding=1), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 4),
    )
    return Tapped(module, roles={"stage1": "0", "stage2": "1", "embedding": "input:4"})


def named(name: str) -> Callable[[], Tapped]:
    return lambda: Tapped(make_model(name, num_classes=4, image_shape=(1, 8, 8)).module, [0.4], [0.3])


Make = Callable[[], Tapped]


@pytest.fixture(
    params=[
        "the same network",
        "a narrower student",
        "a wider student",
        "resnet teaches wrn",
        "wrn teaches resnet",
        "a transformer learns",
        "a transformer teaches",
        "roles named by hand",
    ]
)
def pair(request: pytest.FixtureRequest, tiny_model: Callable[..., Tapped]) -> tuple[Make, Make]:
    """How to make a student and a teacher."""

    def tiny(width: int) -> Make:
        return lambda: tiny_model(int(torch.randint(9999, ())), width=width, dropout=0.1)

    pairs: dict[str, tuple[Make, Make]] = {
        "the same network": (tiny(4), tiny(4)),
        "a narrower student": (tiny(3), tiny(6)),
        "a wider student": (tiny(7), tiny(4)),
        "resnet teaches wrn": (named("wrn-10-1"), named("resnet8x0.25")),
        "wrn teaches resnet": (named("resnet8x0.25"), named("wrn-10-1")),
        "a transformer learns": (lambda: Tapped(Vit()), tiny(4)),
        "a transformer teaches": (tiny(4), lambda: Tapped(Vit())),
        "roles named by hand": (by_hand, lambda: by_hand(6)),
    }
    return pairs[request.param]


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("method", installed())
def test_a_method_on_a_pair(
    method: str,
    pair: tuple[Make, Make],
    tiny_data: Data,
    on_cpu: Hardware,
    tmp_path: Path,
    state_of: Any,
    changed: Any,
) -> None:
    make, make_teacher = pair
    torch.manual_seed(1)
    teacher = make_teacher().train()
    before = state_of(teacher)

    def go(folder: Path, stop: int | None) -> tuple[Tapped, Run, list[Tensor]]:
        shown: list[Tensor] = []
        reports: list[Any] = []

        def report(record: Any) -> None:
            reports.append(record)
            if len(reports) == stop:
                raise StoppedError

        def student() -> Tapped:
            made = make()
            if not watched:
                made.register_forward_pre_hook(_Seen(shown))
                watched.append(state_of(made))
            return made

        watched: list[dict[str, Tensor]] = []
        torch.rand(len(reports) + 1)
        run = Run(tiny_data, student, [teacher], recipe=RECIPE, hardware=on_cpu, seed=4, folder=folder, report=report)
        trained = find(method)(run)
        begun.append(watched[0])
        return trained, run, shown

    begun: list[dict[str, Tensor]] = []
    student, run, shown = go(tmp_path / "whole", None)

    # It has trained, and the teacher has not.
    assert student is not teacher
    after = state_of(student)
    assert changed(begun[0], after)
    assert all(torch.isfinite(value).all() for value in after.values() if value.is_floating_point())
    assert changed(before, state_of(teacher)) == set()
    assert all(p.grad is None for p in teacher.parameters())

    # Its first weights and batches are those of every other method with this seed.
    assert changed(begun[0], state_of(Run(tiny_data, make, seed=4).student())) == set()
    expected = next(iter(Batches(tiny_data.train, batch_size=16, views=tiny_data.views, seed=4).epoch(0))).inputs
    assert torch.equal(shown[0], expected)

    # Stopped and taken up again it is the same.
    with pytest.raises(StoppedError):
        go(tmp_path / "stopped", 1)
    again, resumed, _ = go(tmp_path / "stopped", None)
    assert changed(after, state_of(again)) == set()
    assert [len(fitted.history) for fitted in resumed.fits] == [len(fitted.history) for fitted in run.fits]

    # What is written is the student alone.
    save_weights(tmp_path / "student.safetensors", student.module, {})
    fresh = make()
    load_weights(tmp_path / "student.safetensors", fresh.module)
    pixels = tiny_data.test.images.permute(0, 3, 1, 2) / 255  # type: ignore[union-attr]
    assert torch.equal(fresh.eval()(pixels), student.eval()(pixels))


class _Seen:
    """Keeps the inputs that a model is given with gradients, as training gives them."""

    def __init__(self, shown: list[Tensor]) -> None:
        self.shown = shown

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if torch.is_grad_enabled():
            self.shown.append(inputs[0].clone())

    def __deepcopy__(self, memo: Any) -> _Seen:
        return _Seen([])  # an average of the student has its own


def test_hints_are_learnt_in_the_first_stage(
    tiny_data: Data, tiny_model: Callable[..., Tapped], on_cpu: Hardware, state_of: Any, changed: Any
) -> None:
    teacher = tiny_model(1, width=6)
    records: list[dict[str, Any]] = []
    states: list[dict[str, Tensor]] = []
    made: list[Tapped] = []

    def student() -> Tapped:
        made.append(tiny_model(2))
        states.append(state_of(made[-1]))
        return made[-1]

    def report(record: dict[str, Any]) -> None:
        records.append(record)
        states.append(state_of(made[-1]))

    run = Run(
        tiny_data,
        student,
        [teacher],
        recipe=Recipe(epochs=8, batch_size=16, lr=0.02),
        hardware=on_cpu,
        report=report,
    )
    find("fitnet")(run, hint_share=0.5)
    assert [len(fitted.history) for fitted in run.fits] == [4, 4]
    hints = [record["learners"]["student"]["hint"] for record in records[:4]]
    assert hints[-1] < 0.8 * hints[0]
    assert [record["fit"] for record in records] == [0] * 4 + [1] * 4
    # the first stage moves the lower half alone, the second everything
    lower = {name for name in states[0] if name.startswith(("module.conv1", "module.bn1"))}
    assert changed(states[0], states[4]) == lower
    everything = {name for name in states[0] if name.startswith("module.")}
    assert changed(states[4], states[8]) == everything


@pytest.mark.parametrize("update", ["sequential", "synchronous"])
@pytest.mark.parametrize("target", ["each", "ensemble"])
def test_mutual_learning_has_its_forms(
    update: str, target: str, tiny_data: Data, tiny_model: Callable[..., Tapped], on_cpu: Hardware
) -> None:
    run = Run(tiny_data, lambda: tiny_model(int(torch.randint(9999, ()))), recipe=RECIPE, hardware=on_cpu, seed=1)
    find("dml")(run, update=update, target=target, peers=3)
    (fitted,) = run.fits
    assert set(fitted.selected) == set(fitted.history[-1]["learners"]) == {"net1", "net2", "net3"}
    assert all(entry["mimicry"] > 0 for entry in fitted.history[-1]["learners"].values())


def test_the_forms_of_mutual_learning_differ(
    tiny_data: Data, tiny_model: Callable[..., Tapped], on_cpu: Hardware, state_of: Any, changed: Any
) -> None:
    states = []
    for settings in ({}, {"update": "synchronous"}, {"target": "ensemble"}, {"weight": 0}, {"temperature": 3}):
        run = Run(tiny_data, lambda: tiny_model(int(torch.randint(9999, ()))), recipe=RECIPE, hardware=on_cpu)
        states.append(state_of(find("dml")(run, peers=3, **settings)))
    for number, state in enumerate(states):
        assert all(changed(state, other) for other in states[:number])
    plain = state_of(
        find("plain")(Run(tiny_data, lambda: tiny_model(int(torch.randint(9999, ()))), recipe=RECIPE, hardware=on_cpu))
    )
    assert changed(states[3], plain) == set()  # nets that do not heed each other
