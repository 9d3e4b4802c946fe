"""The average of the student over time, against plain Python."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import nn

from tutelage.data.batch import Batch
from tutelage.models.tapped import Tapped
from tutelage.sources import EMA

ROLES = ("logits", "stage1")


def train_one_step(student: Tapped, batch: Batch, seed: int) -> None:
    """Something that moves every parameter and buffer, the batch counter too."""
    generator = torch.Generator().manual_seed(seed)
    student.train()(batch.inputs + 0.1 * seed)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))


def numbers(model: nn.Module) -> dict[str, list[float]]:
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: value.detach().double().flatten().tolist() for name, value in named}


@pytest.mark.parametrize("buffers", ["average", "copy"])
@pytest.mark.parametrize("decay", [0.0, 0.6, 0.999])
def test_equals_plain_python(
    decay: float, buffers: Literal["average", "copy"], tiny_model: Callable[..., Tapped], batch: Batch
) -> None:
    student = tiny_model()
    ema = EMA(student, decay, buffers)
    held = dict(student.named_buffers())
    average = numbers(student)
    for t in range(1, 6):
        train_one_step(student, batch, t)
        ema.after_step()
        a = min(decay, 1 - 1 / t)
        for name, now in numbers(student).items():
            counter = name in held and not held[name].is_floating_point()
            if counter or (name in held and buffers == "copy"):
                average[name] = now
            else:
                average[name] = [a * old + (1 - a) * new for old, new in zip(average[name], now, strict=True)]
        found = numbers(ema.model)
        assert found.keys() == average.keys()
        for name, expected in average.items():
            assert found[name] == pytest.approx(expected, rel=1e-5, abs=1e-6), (t, name)
    assert ema.updates == 5
    assert int(dict(ema.model.named_buffers())["module.bn1.num_batches_tracked"]) == 5


def test_by_default_it_averages_buffers_too_over_a_thousand_steps(tiny_model: Callable[..., Tapped]) -> None:
    ema = EMA(tiny_model())
    assert (ema.decay, ema.buffers) == (0.999, "average")


def test_far_from_the_start_a_step_of_one_moves_it_by_a_hundredth(tiny_model: Callable[..., Tapped]) -> None:
    """The value for a = 0.99, once 1 - 1/t has passed it."""
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


def test_the_first_update_copies_to_the_bit(
    tiny_model: Callable[..., Tapped], batch: Batch, state_of: Any, changed: Any
) -> None:
    student = tiny_model()
    ema = EMA(student, 0.999)
    start = state_of(student)
    train_one_step(student, batch, 1)
    assert changed(start, state_of(ema.model)) == set()  # nothing is shared with the student
    ema.after_step()
    assert changed(state_of(student), state_of(ema.model)) == set()


@pytest.mark.parametrize("roles", [("logits",), ROLES])
def test_it_answers_in_eval_mode_without_gradients_whatever_the_student_does(
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
        found = ema(batch, roles, {})
        for role in roles:
            assert torch.equal(found[role], expected[role])
            assert not found[role].requires_grad
    assert changed(before, state_of(ema.model)) == set()
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert all(module.training for module in student.modules())


def test_an_average_of_a_compiled_student_answers_for_itself(tiny_model: Callable[..., Tapped], batch: Batch) -> None:
    student = tiny_model()
    student.compile(backend="eager")
    student.tap(batch.inputs, ROLES)
    ema = EMA(student, 0.5)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    for roles in (("logits",), ROLES):
        found = ema(batch, roles, {})
        torch.testing.assert_close(found["logits"], ema.model(batch.inputs))
        assert found["logits"].abs().max() > 0


def test_a_kept_state_goes_on_to_the_same_bits(
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
    other = EMA(student, 0.6)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.updates == 2
    assert changed(state_of(ema.model), state_of(other.model)) == set()
    train_one_step(student, batch, 2)
    for source in (ema, other):
        source.after_step()
    assert changed(state_of(ema.model), state_of(other.model)) == set()


def test_a_network_without_buffers_is_averaged() -> None:
    student = Tapped(nn.Sequential(nn.Flatten(), nn.Linear(2, 2)))
    for buffers in ("average", "copy"):
        ema = EMA(student, 0.5, buffers)  # type: ignore[arg-type]
        ema.after_step()
        assert torch.equal(ema.model(torch.ones(1, 1, 1, 2)), student(torch.ones(1, 1, 1, 2)))


def test_the_loop_is_told_of_the_average_and_not_of_the_student(tiny_model: Callable[..., Tapped]) -> None:
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
def test_a_decay_outside_its_range_is_refused(decay: float, tiny_model: Callable[..., Tapped]) -> None:
    with pytest.raises(ValueError, match=rf"\[0, 1\), got {decay}"):
        EMA(tiny_model(), decay)


class Centred(nn.Module):
    """Buffers of every kind, one of which is a running statistic."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 4)
        self.register_buffer("running_centre", torch.zeros(64))
        self.register_buffer("positions", torch.zeros(64))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(inputs.flatten(1))
        return logits


def test_running_statistics_alone_are_averaged() -> None:
    student = Tapped(Centred())
    ema = EMA(student, 0.75, warm_start=False)
    for buffer in student.module.buffers():
        buffer.data = torch.full_like(buffer, 2.0)
    ema.after_step()
    averaged = dict(ema.model.module.named_buffers())
    assert averaged["running_centre"].unique().tolist() == [0.5]
    assert averaged["positions"].unique().tolist() == averaged["scale"].unique().tolist() == [2.0]


@pytest.mark.parametrize("normalised", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm])
def test_an_average_keeps_the_spectral_norm(normalised: Callable[[nn.Module], nn.Module], batch: Batch) -> None:
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


def test_a_bare_module_is_averaged_in_a_loop_of_ones_own(
    tiny_model: Callable[..., Tapped], batch: Batch, state_of: Any, changed: Any
) -> None:
    """As the wrapped one: weights and buffers, without gradients, in eval mode."""
    wrapped, bare = Tapped(tiny_model().module), tiny_model().module
    averages = EMA(wrapped, 0.6), EMA(bare, 0.6)
    for step in range(1, 4):
        train_one_step(wrapped, batch, step)
        train_one_step(Tapped(bare), batch, step)
        for average in averages:
            average.after_step()
            average.model.train()
    found = averages[1](batch.inputs)["logits"]
    assert torch.equal(found, averages[0](batch, ("logits",), {})["logits"])
    assert not found.requires_grad
    assert changed(state_of(averages[0].model), state_of(averages[1].model)) == set()
    assert all(parameter.requires_grad for parameter in bare.parameters())
    assert isinstance(EMA(bare, start=copy.deepcopy(bare)).model, Tapped)
