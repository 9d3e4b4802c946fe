"""Checks of networks before and during training: outputs, modes, non-finite values and memory formats."""

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
from tutelage.models.modes import restore_state
from tutelage.models.tapped import Tapped
from tutelage.sources import Frozen
from tutelage.tasks import evaluate
from tutelage.terms import AttentionTransfer, CrossEntropy, Hint, SoftTargets
from tutelage.training import Learner, Run, fit
from tutelage.training.execution import Execution

Net = Callable[..., Tapped]
SHORT = Recipe(epochs=1, batch_size=16)
Pair = namedtuple("Pair", "logits aux")


@dataclass
class ModelOutput:
    logits: Tensor


WITH_LOGITS: dict[str, Callable[[Tensor], Any]] = {
    "tuple": lambda logits: (logits, logits),
    "Pair": lambda logits: Pair(logits, logits),
    "dict": lambda logits: {"logits": logits},
    "ModelOutput": ModelOutput,
}
WITHOUT_LOGITS: dict[str, Callable[[Tensor], Any]] = {
    "tuple": lambda logits: (logits.sum(), logits),
    "dict": lambda logits: {"scores": logits},
    "list": lambda logits: [],
    "str": lambda logits: "logits",
}


class Structured(nn.Module):
    """Wraps its logits by a function in these modes (True: train mode)."""

    def __init__(self, wrap: Callable[[Tensor], Any], modes: tuple[bool, ...]) -> None:
        super().__init__()
        self.fc, self.norm, self.wrap, self.modes = nn.Linear(64, 4), nn.BatchNorm1d(4), wrap, modes

    def forward(self, x: Tensor) -> Any:
        logits = self.norm(self.fc(x.flatten(1)))
        return self.wrap(logits) if self.training in self.modes else logits


@pytest.mark.parametrize("name", WITHOUT_LOGITS)
@pytest.mark.parametrize(("modes", "mode_name"), [((True,), "train mode"), ((True, False), "eval mode")])
def test_student_without_logits_is_refused_and_unchanged(
    name: str, modes: tuple[bool, ...], mode_name: str, tiny_data: Data, on_cpu: Hardware, refused: Any, state_of: Any,
    changed: Any,
) -> None:  # fmt: skip
    model = Tapped(Structured(WITHOUT_LOGITS[name], modes)).train()
    before = state_of(model)
    generators = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
    for hardware in (on_cpu, on_cpu.replace(channels_last=True)):
        with refused(f"Structured returns no logits in {mode_name}, but {name}", "returns logits (B, classes)"):
            fit(
                Learner(model, None, {"ce": CrossEntropy()}),
                data=tiny_data,
                recipe=SHORT,
                execution=Execution.on(hardware),
            )
    assert changed(before, state_of(model)) == set()
    assert all(module.training for module in model.modules())
    assert torch.equal(generators[0], torch.get_rng_state())
    assert generators[1:] == (np.random.get_state()[1].tolist(), random.getstate())  # type: ignore[index]


@pytest.mark.parametrize("name", WITH_LOGITS)
def test_logits_are_found_in_structured_outputs(
    name: str, tiny_data: Data, on_cpu: Hardware, state_of: Any, changed: Any
) -> None:
    """Student and teacher with structured outputs give the same weights as networks that return a tensor."""
    states = []
    for modes in ((), (True,), (True, False)):
        torch.manual_seed(0)
        student, teacher = (Tapped(Structured(WITH_LOGITS[name], modes)) for _ in range(2))
        terms = {"ce": CrossEntropy(), "kd": SoftTargets()}
        fit(Learner(student, Frozen(teacher), terms), data=tiny_data, recipe=SHORT, execution=Execution.on(on_cpu))
        states.append(state_of(student))
    assert changed(states[0], states[1]) == changed(states[0], states[2]) == set()


@pytest.mark.parametrize("name", WITHOUT_LOGITS)
def test_teacher_without_logits_is_refused(
    name: str, tiny_data: Data, tiny_model: Net, on_cpu: Hardware, refused: Any
) -> None:
    teacher = Tapped(Structured(WITHOUT_LOGITS[name], (True, False)))
    with refused(f"Structured returns no logits in eval mode, but {name}", "returns logits (B, classes)"):
        fit(
            Learner(tiny_model(), Frozen(teacher), {"kd": SoftTargets()}),
            data=tiny_data,
            execution=Execution.on(on_cpu),
        )
    # The mode of this one does not matter: a teacher never runs in train mode.
    train_mode_only = Frozen(Tapped(Structured(WITHOUT_LOGITS[name], (True,))))
    fit(
        Learner(tiny_model(), train_mode_only, {"kd": SoftTargets()}),
        data=tiny_data,
        recipe=SHORT,
        execution=Execution.on(on_cpu),
    )


def test_wrong_number_of_classes_only_in_train_mode_is_refused(tiny_data: Data, on_cpu: Hardware, refused: Any) -> None:
    model = Tapped(Structured(lambda logits: logits[:, :3], (True,)))
    with refused("learner 'student' in train mode", "(4, 3)", "4 classes"):
        fit(Learner(model, None, {"ce": CrossEntropy()}), data=tiny_data, execution=Execution.on(on_cpu))


class Stateful(nn.Module):
    """Changes a buffer in place, replaces another, and sets plain attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.register_buffer("updated", torch.zeros(2))
        self.register_buffer("replaced", torch.full((2,), torch.nan))

    def forward(self, x: Tensor) -> Tensor:
        self.calls, self.inputs = self.calls + 1, x
        self.updated.add_(1)
        self.replaced = self.replaced + 1
        return x


def test_restore_state_restores_every_attribute_and_buffer() -> None:
    model = nn.Sequential(Stateful(), nn.utils.spectral_norm(nn.Linear(3, 3)), nn.BatchNorm1d(3)).train()
    first = model[0]
    before = {name: (buffer, buffer.clone()) for name, buffer in model.named_buffers()}
    with restore_state(model):
        model(torch.rand(4, 3))
        model.eval()
    assert first.calls == 0
    assert not hasattr(first, "inputs")
    assert all(module.training for module in model.modules())
    for name, buffer in model.named_buffers():
        assert buffer is before[name][0]
        torch.testing.assert_close(buffer, before[name][1], rtol=0, atol=0, equal_nan=True)


# --- probabilities instead of logits


def with_layer(net: Tapped, layer: nn.Module) -> Tapped:
    return Tapped(nn.Sequential(net.module, layer))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("network", ["teacher", "model"])
def test_probabilities_instead_of_logits_cause_one_warning(
    network: str, precision: str, tiny_data: Data, tiny_model: Net, on_cpu: Hardware
) -> None:
    networks = {"teacher": tiny_model(1), "model": tiny_model()}
    networks[network] = with_layer(networks[network], nn.Softmax(1))
    learner = Learner(networks["model"], Frozen(networks["teacher"], networks["teacher"]), {"kd": SoftTargets()})
    with warnings.catch_warnings(record=True) as records:
        warnings.simplefilter("always")
        fit(learner, data=tiny_data, recipe=SHORT, execution=Execution.on(on_cpu.replace(precision=precision)))
    texts = [text for text in map(str, (warning.message for warning in records)) if "instructions for" not in text]
    assert len(texts) == 1
    assert f"the {network} of learner 'student' gives probabilities" in texts[0]
    assert "softmax" in texts[0]


def test_log_probabilities_are_accepted_as_logits(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    teacher = with_layer(tiny_model(1), nn.LogSoftmax(1))
    fit(
        Learner(tiny_model(), Frozen(teacher), {"kd": SoftTargets()}),
        data=tiny_data,
        recipe=SHORT,
        execution=Execution.on(on_cpu),
    )


# --- non-finite teacher outputs


WHITE = 0.999


class NonFinite(nn.Module):
    """Returns a non-finite value for every output."""

    def __init__(self, network: nn.Module, value: float) -> None:
        super().__init__()
        self.network, self.value = network, value

    def forward(self, x: Tensor) -> Tensor:
        return torch.full_like(self.network(x), self.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_teacher_is_reported_before_the_first_step(
    value: float, tiny_data: Data, tiny_model: Net, on_cpu: Hardware, refused: Any
) -> None:
    teacher = Tapped(NonFinite(tiny_model(1).module, value))
    with refused(f"the teacher of learner 'student' gives {value} for logits", "check its weights"):
        fit(
            Learner(tiny_model(), Frozen(teacher), {"kd": SoftTargets()}),
            data=tiny_data,
            execution=Execution.on(on_cpu),
        )


@pytest.mark.parametrize("role", ["logits", "stage2"])
def test_teacher_that_is_non_finite_on_some_samples_is_reported_with_them(
    role: str, tiny_data: Data, tiny_model: Net, on_cpu: Hardware
) -> None:
    images = tiny_data.train.inputs.clone()  # type: ignore[union-attr]
    images[20] = 255  # not in the batch of the dry run
    data = replace(tiny_data, train=replace(tiny_data.train, inputs=images))
    network = tiny_model(1).module

    def add_nan(layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        white = pixels[0].amin((1, 2, 3)) >= WHITE
        return output.masked_fill(white[(...,) + (None,) * (output.ndim - 1)], torch.nan)

    pixels: list[Tensor] = []
    network.register_forward_pre_hook(lambda _, inputs: pixels.__setitem__(slice(None), [inputs[0]]))
    network.get_submodule("fc" if role == "logits" else "bn2").register_forward_hook(add_nan)
    terms = {"ce": CrossEntropy(), "term": SoftTargets() if role == "logits" else Hint("stage2", "stage2", "mean")}
    learner = Learner(tiny_model(), Frozen(Tapped(network)), terms)
    with pytest.raises(NonFiniteError) as exc_info:
        fit(learner, data=replace(data, views=type(data.views)()), recipe=SHORT, execution=Execution.on(on_cpu))
    text = str(exc_info.value)
    assert f"the teacher of learner 'student' gives nan for {role}" in text
    assert "learning rate" not in text
    assert len(text.splitlines()) == 1
    assert 20 in exc_info.value.indices


def test_divergence_of_the_student_is_not_reported_as_a_teacher_error(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware
) -> None:
    learner = Learner(tiny_model(), Frozen(tiny_model(1)), {"ce": CrossEntropy(), "kd": SoftTargets()})
    with pytest.raises(NonFiniteError, match="lower the learning rate"):
        fit(learner, data=tiny_data, recipe=SHORT.replace(lr=1e30), execution=Execution.on(on_cpu))


# --- memory formats


class Viewing(nn.Module):
    """In these modes, flattens a feature map by ``view``, which fails in channels-last format."""

    def __init__(self, modes: tuple[bool, ...] = (True, False)) -> None:
        super().__init__()
        self.conv, self.fc, self.modes = nn.Conv2d(1, 4, 3), nn.Linear(144, 4), modes

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        flat = x.view(len(x), -1) if self.training in self.modes else x.flatten(1)
        return self.fc(flat)  # type: ignore[no-any-return]


@pytest.mark.parametrize("viewing_network", ["student", "teacher"])
@pytest.mark.parametrize("modes", [(True, False), (True,)])
def test_network_that_fails_in_channels_last_runs_contiguous_with_a_warning(
    viewing_network: str, modes: tuple[bool, ...], tiny_data: Data, on_cpu: Hardware
) -> None:
    def run(hardware: Hardware) -> Tapped:
        torch.manual_seed(0)
        viewing, other = Tapped(Viewing(modes)), Tapped(Viewing(()))
        student, teacher = (viewing, other) if viewing_network == "student" else (other, viewing)
        fit(
            Learner(student, Frozen(teacher), {"kd": SoftTargets()}),
            data=tiny_data,
            recipe=SHORT,
            execution=Execution.on(hardware),
        )
        fit(
            Learner(student, None, {"ce": CrossEntropy()}),
            data=tiny_data,
            recipe=SHORT,
            execution=Execution.on(hardware),
        )
        evaluate(student, tiny_data)
        return student

    if viewing_network == "teacher" and modes == (True,):
        run(on_cpu.replace(channels_last=True))  # a teacher never runs in train mode
        return
    with pytest.warns(TutelageWarning, match=r"Viewing cannot run in channels-last .*channels_last=False") as records:
        student = run(on_cpu.replace(channels_last=True))
    assert len(records) == 1
    assert student.contiguous is (viewing_network == "student")
    if viewing_network == "student":  # a channels-last student rounds differently
        torch.testing.assert_close(student.state_dict(), run(on_cpu).state_dict())


def test_prediction_before_the_first_fit_falls_back_to_contiguous(tiny_data: Data, on_cpu: Hardware) -> None:
    run = Run(tiny_data, lambda: Tapped(Viewing()), hardware=on_cpu.replace(channels_last=True))
    with pytest.warns(TutelageWarning, match="channels-last"):
        assert run.predict(run.student(), tiny_data.test).shape == (16, 4)


def test_network_that_supports_channels_last_uses_it(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    model = tiny_model()
    terms = {"at": AttentionTransfer((("stage1", "stage1"),))}
    learner = Learner(model, Frozen(tiny_model(1)), terms)
    fit(learner, data=tiny_data, recipe=SHORT, execution=Execution.on(on_cpu.replace(channels_last=True)))
    assert not model.contiguous
    assert model.module.get_submodule("conv2").weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[operator]
