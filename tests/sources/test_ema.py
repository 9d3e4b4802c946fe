"""EMA: the exponential moving average of the student, against a reference in plain Python."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import nn

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.models.tapped import Tapped
from tutelage.sources import EMA

ROLES = ("logits", "stage1")


def train_one_step(student: Tapped, batch: Batch, seed: int) -> None:
    """Change every parameter and buffer, including the batch counter."""
    generator = torch.Generator().manual_seed(seed)
    student.train()(batch.inputs + 0.1 * seed)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))


def numbers(model: nn.Module) -> dict[str, list[float]]:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name: value.detach().double().flatten().tolist() for name, value in tensors}


@pytest.mark.parametrize("buffers", ["average", "copy"])
@pytest.mark.parametrize("decay", [0.0, 0.6, 0.999])
def test_ema_equals_a_plain_python_reference(
    decay: float, buffers: Literal["average", "copy"], tiny_model: Callable[..., Tapped], batch: Batch
) -> None:
    student = tiny_model()
    ema = EMA(student, decay, buffers)
    student_buffers = dict(student.named_buffers())
    average = numbers(student)
    for t in range(1, 6):
        train_one_step(student, batch, t)
        ema.after_step()
        a = min(decay, 1 - 1 / t)
        for name, current in numbers(student).items():
            counter = name in student_buffers and not student_buffers[name].is_floating_point()
            if counter or (name in student_buffers and buffers == "copy"):
                average[name] = current
            else:
                average[name] = [a * old + (1 - a) * new for old, new in zip(average[name], current, strict=True)]
        values = numbers(ema.model)
        assert values.keys() == average.keys()
        for name, expected in average.items():
            assert values[name] == pytest.approx(expected, rel=1e-5, abs=1e-6), (t, name)
    assert ema.updates == 5
    assert int(dict(ema.model.named_buffers())["module.bn1.num_batches_tracked"]) == 5


def test_default_decay_and_buffers(tiny_model: Callable[..., Tapped]) -> None:
    ema = EMA(tiny_model())
    assert (ema.decay, ema.buffers) == (0.999, "average")


def test_update_after_the_warm_start_equals_the_closed_form(tiny_model: Callable[..., Tapped]) -> None:
    """After the warm start, a = 0.99: an average of 0 and a student of 1 give 0.01."""
    student = tiny_model()
    ema = EMA(student, 0.99)
    ema.updates = 1000
    with torch.no_grad():
        for old, new in zip(ema.model.parameters(), student.parameters(), strict=True):
            old.zero_()
            new.fill_(1)
    ema.after_step()
    for value in ema.model.parameters():
        torch.testing.assert_close(value.detach(), torch.full_like(value, 0.01))


def test_first_update_copies_the_student_exactly(
    tiny_model: Callable[..., Tapped], batch: Batch, state_of: Any, changed: Any
) -> None:
    student = tiny_model()
    ema = EMA(student, 0.999)
    start = state_of(student)
    train_one_step(student, batch, 1)
    assert changed(start, state_of(ema.model)) == set()  # no tensor is shared with the student
    ema.after_step()
    assert changed(state_of(student), state_of(ema.model)) == set()


@pytest.mark.parametrize("roles", [("logits",), ROLES])
def test_outputs_are_in_eval_mode_without_gradients_in_any_mode_of_the_student(
    roles: tuple[str, ...], tiny_model: Callable[..., Tapped], batch: Batch, state_of: Any, changed: Any
) -> None:
    student = tiny_model(dropout=0.5)
    ema = EMA(student, 0.5)
    for step in range(3):
        train_one_step(student, batch, step)
        ema.after_step()
    expected, before = copy.deepcopy(ema.model).eval().tap(batch.inputs, roles), state_of(ema.model)
    for _ in range(3):
        ema.model.train()
        outputs = ema(batch, roles, {})
        for role in roles:
            assert torch.equal(outputs[role], expected[role])
            assert not outputs[role].requires_grad
    assert changed(before, state_of(ema.model)) == set()
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert all(module.training for module in student.modules())


def test_ema_of_a_compiled_student_runs_its_own_weights(tiny_model: Callable[..., Tapped], batch: Batch) -> None:
    student = tiny_model()
    student.compile(backend="eager")
    student.tap(batch.inputs, ROLES)
    ema = EMA(student, 0.5)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    for roles in (("logits",), ROLES):
        outputs = ema(batch, roles, {})
        torch.testing.assert_close(outputs["logits"], ema.model(batch.inputs))
        assert outputs["logits"].abs().max() > 0


def test_saved_state_resumes_exactly(
    tiny_model: Callable[..., Tapped], batch: Batch, state_of: Any, changed: Any
) -> None:
    student = tiny_model()
    ema = EMA(student, 0.6)
    for step in range(2):
        train_one_step(student, batch, step)
        ema.after_step()
    file = io.BytesIO()
    torch.save(ema.state_dict(), file)
    file.seek(0)
    loaded_ema = EMA(student, 0.6)
    loaded_ema.load_state_dict(torch.load(file, weights_only=True))
    assert loaded_ema.updates == 2
    assert changed(state_of(ema.model), state_of(loaded_ema.model)) == set()
    train_one_step(student, batch, 2)
    for source in (ema, loaded_ema):
        source.after_step()
    assert changed(state_of(ema.model), state_of(loaded_ema.model)) == set()


def test_ema_of_a_network_without_buffers() -> None:
    student = Tapped(nn.Sequential(nn.Flatten(), nn.Linear(2, 2)))
    for buffers in ("average", "copy"):
        ema = EMA(student, 0.5, buffers)  # type: ignore[arg-type]
        ema.after_step()
        assert torch.equal(ema.model(torch.ones(1, 1, 1, 2)), student(torch.ones(1, 1, 1, 2)))


def test_models_are_the_average_without_the_student(tiny_model: Callable[..., Tapped]) -> None:
    ema = EMA(tiny_model())
    assert ema.models == (ema.model,)


def test_without_a_warm_start_the_decay_is_constant(tiny_model: Callable[..., Tapped]) -> None:
    student = tiny_model()
    ema = EMA(student, 0.99, warm_start=False)
    with torch.no_grad():
        for parameter in ema.model.parameters():
            parameter.zero_()
        for parameter in student.parameters():
            parameter.fill_(1.0)
    ema.after_step()
    for parameter in ema.model.parameters():
        torch.testing.assert_close(parameter, torch.full_like(parameter, 0.01))


@pytest.mark.parametrize("decay", [1, -0.1, 1.5, float("nan")])
def test_decay_out_of_range_is_refused(decay: float, tiny_model: Callable[..., Tapped]) -> None:
    with pytest.raises(TutelageError, match=rf"\[0, 1\), got {decay}"):
        EMA(tiny_model(), decay)


class WithBuffers(nn.Module):
    """A network with three buffers, only one of which is a running statistic."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 4)
        self.register_buffer("running_centre", torch.zeros(64))
        self.register_buffer("positions", torch.zeros(64))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(inputs.flatten(1))
        return logits


def test_only_running_statistics_are_averaged() -> None:
    student = Tapped(WithBuffers())
    ema = EMA(student, 0.75, warm_start=False)
    for buffer in student.module.buffers():
        buffer.data = torch.full_like(buffer, 2.0)
    ema.after_step()
    buffers_of_average = dict(ema.model.module.named_buffers())
    assert buffers_of_average["running_centre"].unique().tolist() == [0.5]
    assert buffers_of_average["positions"].unique().tolist() == buffers_of_average["scale"].unique().tolist() == [2.0]


@pytest.mark.parametrize("normalised", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm])
def test_ema_keeps_the_spectral_norm(normalised: Callable[[nn.Module], nn.Module], batch: Batch) -> None:
    torch.manual_seed(0)
    student = Tapped(nn.Sequential(nn.Flatten(), normalised(nn.Linear(64, 16)), normalised(nn.Linear(16, 4))))
    ema = EMA(student, 0.95)
    for _ in range(60):
        student.train()(batch.inputs)
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(torch.randn(parameter.shape) * parameter.std(), alpha=0.1)
        ema.after_step()
    ema(batch, ("logits",), {})
    for layer in list(ema.model.module)[1:]:  # type: ignore[arg-type]
        assert float(torch.linalg.matrix_norm(layer.weight, 2)) == pytest.approx(1, abs=0.05)


def test_ema_of_a_bare_module_in_a_custom_loop(
    tiny_model: Callable[..., Tapped], batch: Batch, state_of: Any, changed: Any
) -> None:
    """An EMA of a bare module equals that of a wrapped one: weights, buffers and outputs."""
    wrapped_model, bare_module = Tapped(tiny_model().module), tiny_model().module
    averages = EMA(wrapped_model, 0.6), EMA(bare_module, 0.6)
    for step in range(1, 4):
        train_one_step(wrapped_model, batch, step)
        train_one_step(Tapped(bare_module), batch, step)
        for average in averages:
            average.after_step()
            average.model.train()
    logits = averages[1](batch.inputs)["logits"]
    assert torch.equal(logits, averages[0](batch, ("logits",), {})["logits"])
    assert not logits.requires_grad
    assert changed(state_of(averages[0].model), state_of(averages[1].model)) == set()
    assert all(parameter.requires_grad for parameter in bare_module.parameters())
    assert isinstance(EMA(bare_module, start=copy.deepcopy(bare_module)).model, Tapped)
