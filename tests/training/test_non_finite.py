"""Non-finite losses and weights end a fit with an error and are never saved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.training.resuming import METHODS, Net
from tutelage.config import Hardware, Recipe
from tutelage.data import Batch, Data
from tutelage.errors import NonFiniteError, TutelageError
from tutelage.models.outputs import Outputs
from tutelage.terms import CrossEntropy, Term
from tutelage.training import Learner, Run, Step, fit, together
from tutelage.training.checkpoint import Checkpoints
from tutelage.training.execution import Execution

# --- non-finite values


class NonFiniteLoss(Term):
    """Cross-entropy that has ``value`` for a sample of one step (counted from 0 over the fit)."""

    reads_teacher = False

    def __init__(self, step: int, value: float, one_value: bool = False) -> None:
        super().__init__()
        self.inner, self.step, self.value, self.one_value = CrossEntropy(), step, value, one_value
        self.batches: list[list[int]] = []

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        loss: Tensor = self.inner(student, teacher, batch)
        if not torch.is_grad_enabled():
            return loss
        assert batch is not None
        self.batches.append(batch.index.tolist())
        if len(self.batches) - 1 != self.step:
            return loss
        loss = loss * torch.tensor([self.value] + [1.0] * (len(loss) - 1))
        return loss.mean() if self.one_value else loss


@pytest.mark.parametrize(
    ("value", "adjective"), [(float("nan"), "nan"), (float("inf"), "inf"), (float("-inf"), "-inf")]
)
@pytest.mark.parametrize(("step", "epoch", "within"), [(0, 1, 1), (4, 2, 2), (8, 3, 3)])
def test_non_finite_term_is_reported_with_its_samples(
    step: int,
    epoch: int,
    within: int,
    value: float,
    adjective: str,
    tmp_path: Path,
    tiny_data: Data,
    tiny_model: Net,
    on_cpu: Hardware,
) -> None:
    shifted_data = replace(tiny_data, train=replace(tiny_data.train, index=tiny_data.train.index + 1000))
    bad = NonFiniteLoss(step, value)
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(NonFiniteError) as exc_info:
        fit(
            Learner(tiny_model(1), None, {"ce": CrossEntropy()}, name="finite"),
            Learner(tiny_model(), None, {"fine": CrossEntropy(), "bad": bad}, name="non-finite"),
            data=shifted_data,
            recipe=Recipe(epochs=4, batch_size=16),
            execution=Execution.on(on_cpu, checkpoints=checkpoints),
        )
    text = str(exc_info.value)
    assert f"epoch {epoch}, step {within}: term 'bad' of learner 'non-finite' became {adjective}" in text
    assert "learning rate (now 0.05)" in text
    assert len(text.splitlines()) == 1
    assert isinstance(exc_info.value, TutelageError)
    assert exc_info.value.indices == bad.batches[step]  # type: ignore[attr-defined]
    assert min(bad.batches[step]) >= 1000
    assert str(bad.batches[step][0]) in text
    saved_state = checkpoints.load()
    if epoch == 1:
        assert saved_state is None
        assert "checkpoint" not in text
    else:
        assert saved_state is not None
        assert len(saved_state["history"]) == epoch - 1
        assert str(checkpoints.latest()) in text
        assert all(torch.isfinite(v).all() for v in saved_state["learners"][1]["model"].values())


def test_non_finite_single_value_is_reported(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    learner = Learner(tiny_model(), None, {"bad": NonFiniteLoss(1, float("nan"), one_value=True)})
    with pytest.raises(NonFiniteError, match="epoch 1, step 2: term 'bad'"):
        fit(learner, data=tiny_data, recipe=Recipe(epochs=2, batch_size=16), execution=Execution.on(on_cpu))


@pytest.mark.parametrize("step", [2, 49, 50, 51, 99, 100, 110])
def test_long_epoch_is_checked_within_50_steps_and_the_error_has_the_right_step(
    step: int, tiny_data: Data, tiny_model: Net, on_cpu: Hardware
) -> None:
    """120 steps per epoch: the losses are checked more than twice in it."""
    data = replace(tiny_data, train=tiny_data.train.subset(torch.arange(120) % 48), validation=None)
    data = replace(data, train=replace(data.train, index=torch.arange(120)))
    bad = NonFiniteLoss(step, float("nan"))
    with pytest.raises(NonFiniteError, match=f"epoch 1, step {step + 1}: ") as exc_info:
        fit(
            Learner(tiny_model(), None, {"x": bad}),
            data=data,
            recipe=Recipe(epochs=1, batch_size=1),
            execution=Execution.on(on_cpu),
        )
    assert exc_info.value.indices == bad.batches[step]  # type: ignore[attr-defined]
    assert len(bad.batches) <= step + 51  # before the end of the epoch


def set_weight_after(step_number: int, value: float) -> Callable[[Step], None]:
    """Like ``together``, but sets a weight to a value after one step, whose loss was finite."""
    steps: list[int] = []

    def rule(step: Step) -> None:
        together(step)
        steps.append(1)
        if len(steps) - 1 == step_number:
            with torch.no_grad():
                next(step.learners[0].model.parameters()).view(-1)[0] = value

    return rule


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_non_finite_weights_after_the_last_step_are_not_saved(
    value: float, tmp_path: Path, tiny_data: Data, tiny_model: Net, on_cpu: Hardware
) -> None:
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(
        NonFiniteError, match=r"epoch 2: the weights or statistics of learner 'student'.* checkpoint is .*00001"
    ) as e:
        fit(
            Learner(tiny_model(), None, {"ce": CrossEntropy()}),
            data=tiny_data,
            recipe=Recipe(epochs=3, batch_size=16),
            execution=Execution.on(on_cpu, checkpoints=checkpoints),
            update=set_weight_after(5, value),
        )
    assert len(str(e.value).splitlines()) == 1
    assert len(checkpoints.load()["history"]) == 1  # type: ignore[index]


def test_non_finite_running_statistics_are_not_saved(
    tmp_path: Path, tiny_data: Data, tiny_model: Net, on_cpu: Hardware
) -> None:
    """A running variance can overflow while every weight and every loss is finite."""
    model = tiny_model()

    def rule(step: Step) -> None:
        together(step)
        model.module.get_buffer("bn1.running_var").fill_(float("inf"))

    with pytest.raises(NonFiniteError, match="learner 'student'"):
        fit(
            Learner(model, None, {"ce": CrossEntropy()}),
            data=replace(tiny_data, validation=None),
            recipe=Recipe(epochs=2, batch_size=16),
            execution=Execution.on(on_cpu, checkpoints=Checkpoints(tmp_path)),
            update=rule,
        )
    assert Checkpoints(tmp_path).load() is None


@pytest.mark.parametrize("name", ["plain", "hinton", "dml in turn", "fitnet", "at"])
def test_too_high_learning_rate_is_reported_in_one_line(
    name: str, tmp_path: Path, tiny_data: Data, tiny_model: Net, on_cpu: Hardware
) -> None:
    run = Run(
        tiny_data,
        tiny_model,
        [tiny_model(1, width=6)],
        recipe=Recipe(epochs=4, batch_size=16, lr=1e30),
        hardware=on_cpu,
        folder=tmp_path,
    )
    with pytest.raises(NonFiniteError) as exc_info:
        METHODS[name](run)
    assert "lower the learning rate (now 1e+30)" in str(exc_info.value)
    for number in range(2):
        saved_state = Checkpoints(tmp_path / "checkpoints", number).load()
        for learner in saved_state["learners"] if saved_state else []:
            assert all(torch.isfinite(value).all() for value in learner["model"].values())
