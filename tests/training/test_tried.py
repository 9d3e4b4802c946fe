"""Networks that do not fit are found before the first step, in both modes, and nothing of them changes."""

from __future__ import annotations

import random
import warnings
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tutelage.config import Hardware, Recipe
from tutelage.data import Data
from tutelage.errors import NonFiniteError, TutelageWarning
from tutelage.evaluation import evaluate
from tutelage.models.modes import restore_state
from tutelage.models.tapped import Tapped
from tutelage.sources import Frozen
from tutelage.terms import AttentionTransfer, CrossEntropy, Hint, SoftTargets
from tutelage.training import Learner, Run, fit

Net = Callable[..., Tapped]
SHORT = Recipe(epochs=1, batch_size=16)
Pair = namedtuple("Pair", "logits aux")


@dataclass
class Answer:
    logits: Tensor


WITH_LOGITS: dict[str, Callable[[Tensor], Any]] = {
    "tuple": lambda logits: (logits, logits),
    "Pair": lambda logits: Pair(logits, logits),
    "dict": lambda logits: {"logits": logits},
    "Answer": Answer,
}
WITHOUT_LOGITS: dict[str, Callable[[Tensor], Any]] = {
    "tuple": lambda logits: (logits.sum(), logits),
    "dict": lambda logits: {"scores": logits},
    "list": lambda logits: [],
    "str": lambda logits: "logits",
}


class Structured(nn.Module):
    """Gives something else than logits, in these modes."""

    def __init__(self, wrap: Callable[[Tensor], Any], modes: tuple[bool, ...]) -> None:
        super().__init__()
        self.fc, self.norm, self.wrap, self.modes = nn.Linear(64, 4), nn.BatchNorm1d(4), wrap, modes

    def forward(self, x: Tensor) -> Any:
        logits = self.norm(self.fc(x.flatten(1)))
        return self.wrap(logits) if self.training in self.modes else logits


@pytest.mark.parametrize("name", WITHOUT_LOGITS)
@pytest.mark.parametrize(("modes", "said"), [((True,), "train mode"), ((True, False), "eval mode")])
def test_a_student_that_gives_no_logits(
    name: str, modes: tuple[bool, ...], said: str, tiny_data: Data, on_cpu: Hardware, refused: Any, state_of: Any,
    changed: Any,
) -> None:  # fmt: skip
    model = Tapped(Structured(WITHOUT_LOGITS[name], modes)).train()
    before = state_of(model)
    generators = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
    for hardware in (on_cpu, on_cpu.replace(channels_last=True)):
        with refused(f"Structured returns no logits in {said}, but {name}", "returns logits (B, classes)"):
            fit(Learner(model, None, {"ce": CrossEntropy()}), data=tiny_data, recipe=SHORT, hardware=hardware)
    assert changed(before, state_of(model)) == set()
    assert all(module.training for module in model.modules())
    assert torch.equal(generators[0], torch.get_rng_state())
    assert generators[1:] == (np.random.get_state()[1].tolist(), random.getstate())  # type: ignore[index]


@pytest.mark.parametrize("name", WITH_LOGITS)
def test_logits_in_what_a_network_returns_are_found(
    name: str, tiny_data: Data, on_cpu: Hardware, state_of: Any, changed: Any
) -> None:
    """In one mode or both, it learns and teaches as one that returns the tensor itself."""
    ends = []
    for modes in ((), (True,), (True, False)):
        torch.manual_seed(0)
        student, teacher = (Tapped(Structured(WITH_LOGITS[name], modes)) for _ in range(2))
        terms = {"ce": CrossEntropy(), "kd": SoftTargets()}
        fit(Learner(student, Frozen(teacher), terms), data=tiny_data, recipe=SHORT, hardware=on_cpu)
        ends.append(state_of(student))
    assert changed(ends[0], ends[1]) == changed(ends[0], ends[2]) == set()


@pytest.mark.parametrize("name", WITHOUT_LOGITS)
def test_a_teacher_that_gives_no_logits(
    name: str, tiny_data: Data, tiny_model: Net, on_cpu: Hardware, refused: Any
) -> None:
    teacher = Tapped(Structured(WITHOUT_LOGITS[name], (True, False)))
    with refused(f"Structured returns no logits in eval mode, but {name}", "returns logits (B, classes)"):
        fit(Learner(tiny_model(), Frozen(teacher), {"kd": SoftTargets()}), data=tiny_data, hardware=on_cpu)
    only_trained = Frozen(Tapped(Structured(WITHOUT_LOGITS[name], (True,))))  # which a teacher never is
    fit(Learner(tiny_model(), only_trained, {"kd": SoftTargets()}), data=tiny_data, recipe=SHORT, hardware=on_cpu)


def test_other_classes_in_train_mode_alone(tiny_data: Data, on_cpu: Hardware, refused: Any) -> None:
    model = Tapped(Structured(lambda logits: logits[:, :3], (True,)))
    with refused("learner 'student' in train mode", "(4, 3)", "4 classes"):
        fit(Learner(model, None, {"ce": CrossEntropy()}), data=tiny_data, hardware=on_cpu)


class Restless(nn.Module):
    """Changes a buffer in place, replaces another, and counts in plain attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.register_buffer("moved", torch.zeros(2))
        self.register_buffer("replaced", torch.full((2,), torch.nan))

    def forward(self, x: Tensor) -> Tensor:
        self.calls, self.seen = self.calls + 1, x
        self.moved.add_(1)
        self.replaced = self.replaced + 1
        return x


def test_a_network_is_restored_in_every_attribute_and_buffer() -> None:
    model = nn.Sequential(Restless(), nn.utils.spectral_norm(nn.Linear(3, 3)), nn.BatchNorm1d(3)).train()
    first = model[0]
    kept = {name: (buffer, buffer.clone()) for name, buffer in model.named_buffers()}
    with restore_state(model):
        model(torch.rand(4, 3))
        model.eval()
    assert first.calls == 0
    assert not hasattr(first, "seen")
    assert all(module.training for module in model.modules())
    for name, buffer in model.named_buffers():
        assert buffer is kept[name][0]
        torch.testing.assert_close(buffer, kept[name][1], rtol=0, atol=0, equal_nan=True)


# --- probabilities in the place of logits


def softmaxed(net: Tapped, layer: nn.Module) -> Tapped:
    return Tapped(nn.Sequential(net.module, layer))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("who", ["teacher", "model"])
def test_probabilities_are_warned_of_once(
    who: str, precision: str, tiny_data: Data, tiny_model: Net, on_cpu: Hardware
) -> None:
    networks = {"teacher": tiny_model(1), "model": tiny_model()}
    networks[who] = softmaxed(networks[who], nn.Softmax(1))
    learner = Learner(networks["model"], Frozen(networks["teacher"], networks["teacher"]), {"kd": SoftTargets()})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(learner, data=tiny_data, recipe=SHORT, hardware=on_cpu.replace(precision=precision))
    texts = [str(warning.message) for warning in caught]
    assert len(texts) == 1
    assert f"the {who} of learner 'student' gives probabilities" in texts[0]
    assert "softmax" in texts[0]


def test_logarithms_of_probabilities_are_logits(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    teacher = softmaxed(tiny_model(1), nn.LogSoftmax(1))
    fit(Learner(tiny_model(), Frozen(teacher), {"kd": SoftTargets()}), data=tiny_data, recipe=SHORT, hardware=on_cpu)


# --- a teacher that is not finite


WHITE = 0.999


class Ruined(nn.Module):
    """Gives a value that is not finite."""

    def __init__(self, network: nn.Module, value: float) -> None:
        super().__init__()
        self.network, self.value = network, value

    def forward(self, x: Tensor) -> Tensor:
        return torch.full_like(self.network(x), self.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_teacher_that_is_never_finite_is_named_before_the_first_step(
    value: float, tiny_data: Data, tiny_model: Net, on_cpu: Hardware, refused: Any
) -> None:
    teacher = Tapped(Ruined(tiny_model(1).module, value))
    with refused(f"the teacher of learner 'student' gives {value} for logits", "check its weights"):
        fit(Learner(tiny_model(), Frozen(teacher), {"kd": SoftTargets()}), data=tiny_data, hardware=on_cpu)


@pytest.mark.parametrize("role", ["logits", "stage2"])
def test_a_teacher_that_is_not_finite_on_some_samples_is_named_in_the_epoch(
    role: str, tiny_data: Data, tiny_model: Net, on_cpu: Hardware
) -> None:
    images = tiny_data.train.inputs.clone()  # type: ignore[union-attr]
    images[20] = 255  # none of those of the dry run
    data = replace(tiny_data, train=replace(tiny_data.train, inputs=images))
    network = tiny_model(1).module

    def ruin(layer: nn.Module, taken: Any, given: Tensor) -> Tensor:
        return given.masked_fill((pixels[0].amin((1, 2, 3)) >= WHITE)[(...,) + (None,) * (given.ndim - 1)], torch.nan)

    pixels: list[Tensor] = []
    network.register_forward_pre_hook(lambda _, taken: pixels.__setitem__(slice(None), [taken[0]]))
    network.get_submodule("fc" if role == "logits" else "bn2").register_forward_hook(ruin)
    terms = {"ce": CrossEntropy(), "it": SoftTargets() if role == "logits" else Hint("stage2", "stage2", "mean")}
    learner = Learner(tiny_model(), Frozen(Tapped(network)), terms)
    with pytest.raises(NonFiniteError) as caught:
        fit(learner, data=replace(data, views=type(data.views)()), recipe=SHORT, hardware=on_cpu)
    text = str(caught.value)
    assert f"the teacher of learner 'student' gives nan for {role}" in text
    assert "learning rate" not in text
    assert len(text.splitlines()) == 1
    assert 20 in caught.value.indices


def test_a_student_that_diverges_is_not_blamed_on_its_teacher(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware
) -> None:
    learner = Learner(tiny_model(), Frozen(tiny_model(1)), {"ce": CrossEntropy(), "kd": SoftTargets()})
    with pytest.raises(NonFiniteError, match="lower the learning rate"):
        fit(learner, data=tiny_data, recipe=SHORT.replace(lr=1e30), hardware=on_cpu)


# --- memory layouts


class Viewing(nn.Module):
    """Flattens a map by ``view``, which channels-last memory does not allow, in these modes."""

    def __init__(self, modes: tuple[bool, ...] = (True, False)) -> None:
        super().__init__()
        self.conv, self.fc, self.modes = nn.Conv2d(1, 4, 3), nn.Linear(144, 4), modes

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        flat = x.view(len(x), -1) if self.training in self.modes else x.flatten(1)
        return self.fc(flat)  # type: ignore[no-any-return]


@pytest.mark.parametrize("who", ["student", "teacher"])
@pytest.mark.parametrize("modes", [(True, False), (True,)])
def test_a_network_that_cannot_be_channels_last_runs_contiguous(
    who: str, modes: tuple[bool, ...], tiny_data: Data, on_cpu: Hardware
) -> None:
    def run(hardware: Hardware) -> Tapped:
        torch.manual_seed(0)
        viewing, other = Tapped(Viewing(modes)), Tapped(Viewing(()))
        student, teacher = (viewing, other) if who == "student" else (other, viewing)
        fit(Learner(student, Frozen(teacher), {"kd": SoftTargets()}), data=tiny_data, recipe=SHORT, hardware=hardware)
        fit(Learner(student, None, {"ce": CrossEntropy()}), data=tiny_data, recipe=SHORT, hardware=hardware)
        evaluate(student, tiny_data)
        return student

    if who == "teacher" and modes == (True,):
        run(on_cpu.replace(channels_last=True))  # a teacher is never in train mode
        return
    with pytest.warns(TutelageWarning, match=r"Viewing cannot run in channels-last .*channels_last=False") as caught:
        student = run(on_cpu.replace(channels_last=True))
    assert len(caught) == 1
    assert student.contiguous is (who == "student")
    if who == "student":
        torch.testing.assert_close(student.state_dict(), run(on_cpu).state_dict())  # the other network rounds otherwise


def test_a_prediction_before_the_first_fit(tiny_data: Data, on_cpu: Hardware) -> None:
    run = Run(tiny_data, lambda: Tapped(Viewing()), hardware=on_cpu.replace(channels_last=True))
    with pytest.warns(TutelageWarning, match="channels-last"):
        assert run.predict(run.student(), tiny_data.test).shape == (16, 4)


def test_a_network_that_can_be_channels_last_is(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    model = tiny_model()
    terms = {"at": AttentionTransfer((("stage1", "stage1"),))}
    learner = Learner(model, Frozen(tiny_model(1)), terms)
    fit(learner, data=tiny_data, recipe=SHORT, hardware=on_cpu.replace(channels_last=True))
    assert not model.contiguous
    assert model.module.get_submodule("conv2").weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[operator]
