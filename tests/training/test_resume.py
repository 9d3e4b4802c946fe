"""A fit that was stopped and resumed equals an uninterrupted one, bit for bit."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tutelage.config import Hardware, Recipe
from tutelage.data import Batch, Data
from tutelage.errors import NonFiniteError, TutelageError, TutelageWarning
from tutelage.methods import find, method
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.sources import EMA, Frozen
from tutelage.terms import CrossEntropy, Hint, SoftTargets, Term
from tutelage.training import Learner, ParameterOptions, Run, Step, fit, together
from tutelage.training.checkpoint import Checkpoints, read
from tutelage.training.execution import Execution
from tutelage.training.learner import ForwardPass

Net = Callable[..., Tapped]
EPOCHS = 4


class StoppedError(Exception):
    """The process was killed."""


def random_weights(forward_pass: ForwardPass, progress: float) -> Tensor:
    """Sample weights from all three global random generators, whose state a resumed run must restore."""
    return torch.rand(len(forward_pass.batch)) + float(np.random.rand()) + random.random()


@method(paper="none", family="test")
def ema_and_dropout(run: Run) -> Tapped:
    """An EMA teacher, dropout and random sample weights."""
    student = run.student()
    terms = {"ce": CrossEntropy(), "kd": (lambda progress: progress) * SoftTargets()}
    run.fit(Learner(student, EMA(student, 0.9), terms, sample_weight=random_weights))
    return student


@method(paper="none", family="test")
def two_fits(run: Run) -> Tapped:
    """Two fits with different optimizers, and random numbers drawn between them."""
    student = run.student()
    run.fit(
        Learner(student, None, {"ce": CrossEntropy()}, sample_weight=random_weights),
        epochs=2,
        optimizer="AdamW",
        lr=0.01,
    )
    weight = torch.rand(()).item() + float(np.random.rand()) + random.random()
    run.fit(Learner(student, None, {"ce": weight * CrossEntropy()}), epochs=2)
    return student


@method(paper="none", family="test")
def with_regressor(run: Run) -> Tapped:
    """A regressor that is trained with the student."""
    student = run.student()
    terms = {"ce": CrossEntropy(), "hint": Hint("stage1", "stage1", "mean")}
    run.fit(Learner(student, Frozen(run.teacher()), terms))
    return student


@method(paper="none", family="test")
def with_options(run: Run) -> Tapped:
    """Other learning rates and weight decays for some parameters."""
    student = run.student()
    options = {"conv1.weight": ParameterOptions(lr=0.1), "fc.bias": ParameterOptions(weight_decay=0.0)}
    run.fit(Learner(student, None, {"ce": CrossEntropy()}, options=options.get), optimizer="AdamW", lr=0.01)
    return student


METHODS: dict[str, Callable[[Run], Tapped]] = {
    "plain": find("plain"),
    "hinton": find("hinton"),
    "dml in turn": lambda run: find("dml")(run, update="sequential"),
    "dml together": lambda run: find("dml")(run, update="synchronous", peers=3),
    "fitnet": find("fitnet"),
    "at": find("at"),
    "ema and dropout": ema_and_dropout,
    "random numbers between fits": two_fits,
    "a regressor": with_regressor,
    "options by parameter": with_options,
}


@pytest.fixture
def start(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> Callable[..., tuple[Tapped, Run]]:
    """``start(name, folder, stop=None)``: run a method as in a new process, and stop it at its n-th report."""

    def run_method(name: str, folder: Path, stop: int | None = None) -> tuple[Tapped, Run]:
        torch.manual_seed(random.SystemRandom().randrange(2**31))  # as in a new process
        np.random.seed(None)
        random.seed()
        reports: list[Any] = []

        def report(record: dict[str, Any]) -> None:
            reports.append(record)
            if len(reports) == stop:
                raise StoppedError

        run = Run(
            tiny_data,
            lambda: tiny_model(int(torch.randint(1000, ())), dropout=0.2),
            [tiny_model(seed=1, width=6)],
            recipe=Recipe(epochs=EPOCHS, batch_size=16, lr=0.05),
            hardware=on_cpu,
            seed=3,
            folder=folder,
            report=report,
        )
        student = METHODS[name](run)
        return student, run

    return run_method


Start = Callable[..., tuple[Tapped, Run]]


def checkpoint_contents(folder: Path) -> list[Any]:
    """The content of the last checkpoint of every fit, without durations."""
    states = []
    for number in range(9):
        latest = Checkpoints(folder / "checkpoints", number).latest()
        if latest:
            states.append((latest.name, comparable(read(latest))))
    return states


def comparable(value: Any) -> Any:
    """The value with tensors as bytes, and without durations."""
    if isinstance(value, Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().flatten().view(torch.uint8).tolist()
    if isinstance(value, dict):
        return {key: comparable(entry) for key, entry in value.items() if key != "seconds"}
    if isinstance(value, list | tuple):
        return [comparable(entry) for entry in value]
    return value


def results_of(run: Run) -> Any:
    """History and selected states of every fit."""
    return [
        (comparable(list(fit_result.history)), comparable(selection_of(fit_result.selected))) for fit_result in run.fits
    ]


def selection_of(selected: Any) -> dict[str, Any]:
    return {name: (state.epoch, state.score, dict(state.state)) for name, state in selected.items()}


@pytest.mark.parametrize("name", METHODS)
def test_resumed_run_equals_an_uninterrupted_one(
    name: str, tmp_path: Path, start: Start, state_of: Any, changed: Any
) -> None:
    """Stopped once after one of the epochs, or after all of them in turn."""
    student, run = start(name, tmp_path / "uninterrupted")
    expected, checkpoints = state_of(student), checkpoint_contents(tmp_path / "uninterrupted")
    assert sum(len(fit_result.history) for fit_result in run.fits) == EPOCHS
    for stops in [[1], [2], [3], [4], [1, 2, 3, 4]]:
        folder = tmp_path / "-".join(map(str, stops))
        for stop in stops:
            with pytest.raises(StoppedError):
                start(name, folder, stop)
        resumed_state, resumed_run = start(name, folder)
        assert changed(expected, state_of(resumed_state)) == set(), stops
        assert results_of(resumed_run) == results_of(run), stops
        assert checkpoint_contents(folder) == checkpoints, stops


def test_finished_run_is_not_trained_again(tmp_path: Path, start: Start, state_of: Any, changed: Any) -> None:
    student, _ = start("fitnet", tmp_path)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "checkpoints").iterdir()}
    second_state, run = start("fitnet", tmp_path)
    assert changed(state_of(student), state_of(second_state)) == set()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "checkpoints").iterdir()} == files
    assert [len(fit_result.history) for fit_result in run.fits] == [1, 3]


def test_resumed_run_reports_earlier_epochs_once(
    tmp_path: Path, tiny_data: Data, tiny_model: Net, on_cpu: Hardware
) -> None:
    reported_epochs: list[list[int]] = []
    for stop in (2, None):
        reported_epochs.append([])

        def report(record: dict[str, Any], stop: int | None = stop) -> None:
            reported_epochs[-1].append(record["epoch"])
            if record["epoch"] == stop:
                raise StoppedError

        run = Run(tiny_data, tiny_model, recipe=Recipe(epochs=4), hardware=on_cpu, folder=tmp_path, report=report)
        try:
            find("plain")(run)
        except StoppedError:
            continue
    assert reported_epochs == [[1, 2], [1, 2, 3, 4]]


class Interrupting(Term):
    """Cross-entropy that raises at its n-th step."""

    def __init__(self, at: int | None) -> None:
        super().__init__()
        self.inner, self.at, self.calls = CrossEntropy(), at, 0

    @property
    def teacher_roles(self) -> tuple[str, ...]:
        return ()

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        if torch.is_grad_enabled():
            self.calls += 1
            if self.calls == self.at:
                raise StoppedError
        return self.inner(student, teacher, batch)  # type: ignore[no-any-return]


@pytest.mark.parametrize("at", [1, 2, 4, 5, 8])
def test_run_stopped_within_an_epoch_resumes_exactly(
    at: int, tmp_path: Path, tiny_data: Data, tiny_model: Net, on_cpu: Hardware, state_of: Any, changed: Any
) -> None:
    states = []
    for folder, stops in (("uninterrupted", [None]), ("stopped", [at, None])):
        for stop in stops:
            model = tiny_model(dropout=0.2)
            checkpoints = Checkpoints(tmp_path / folder)
            learner = Learner(model, None, {"ce": Interrupting(stop)}, sample_weight=random_weights)
            try:
                fit(
                    learner,
                    data=tiny_data,
                    recipe=Recipe(epochs=3, batch_size=16),
                    execution=Execution.on(on_cpu, checkpoints=checkpoints),
                )
            except StoppedError:
                continue
        states.append(state_of(model))
    assert changed(*states) == set()


class Counting:
    """A rule with a state: the loss is multiplied by the number of steps."""

    def __init__(self) -> None:
        self.steps = 0

    def __call__(self, step: Step) -> None:
        (learner,) = step.learners
        step.forward(learner)
        self.steps += 1
        step.update(learner, step.loss(learner) * self.steps)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]


def test_state_of_an_update_rule_is_resumed(
    tmp_path: Path, tiny_data: Data, tiny_model: Net, on_cpu: Hardware, state_of: Any, changed: Any
) -> None:
    def train(folder: str, stop: int | None) -> tuple[Tapped, Counting]:
        model, rule = tiny_model(), Counting()

        def report(record: dict[str, Any]) -> None:
            if record["epoch"] == stop:
                raise StoppedError

        fit(
            Learner(model, None, {"ce": CrossEntropy()}),
            data=tiny_data,
            recipe=Recipe(epochs=3, batch_size=16, lr=0.01),
            execution=Execution.on(on_cpu, checkpoints=Checkpoints(tmp_path / folder)),
            update=rule,
            report=report,
        )
        return model, rule

    uninterrupted, _ = train("uninterrupted", None)
    with pytest.raises(StoppedError):
        train("stopped", 2)
    resumed_state, rule = train("stopped", None)
    assert rule.steps == 9
    assert changed(state_of(uninterrupted), state_of(resumed_state)) == set()


# --- damaged checkpoints


def damage_truncate(path: Path, _: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def damage_flip(path: Path, _: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 64
    path.write_bytes(bytes(content))


def damage_empty(path: Path, _: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [damage_truncate, damage_flip, damage_empty])
@pytest.mark.parametrize("part_to_damage", ["last", "all"])
def test_damaged_checkpoints_do_not_change_the_result(
    part_to_damage: str, damage: Any, tmp_path: Path, start: Start, state_of: Any, changed: Any
) -> None:
    student, _ = start("ema and dropout", tmp_path / "uninterrupted")
    with pytest.raises(StoppedError):
        start("ema and dropout", tmp_path / "damaged", 3)
    files = sorted((tmp_path / "damaged" / "checkpoints").iterdir())
    assert [path.name[-8:] for path in files] == ["002.ckpt", "003.ckpt"]
    damaged_files = files if part_to_damage == "all" else files[-1:]
    for path in damaged_files:
        damage(path, tmp_path / "mark")
    with pytest.warns(TutelageWarning, match="is damaged") as records:
        resumed_state, _ = start("ema and dropout", tmp_path / "damaged")
    assert len(records) == len(damaged_files)
    assert changed(state_of(student), state_of(resumed_state)) == set()
    assert checkpoint_contents(tmp_path / "damaged") == checkpoint_contents(tmp_path / "uninterrupted")


def test_damaged_checkpoint_of_a_finished_first_fit(tmp_path: Path, start: Start, state_of: Any, changed: Any) -> None:
    """The first fit is trained again, and the second one is resumed from its checkpoint."""
    student, _ = start("fitnet", tmp_path / "uninterrupted")
    with pytest.raises(StoppedError):
        start("fitnet", tmp_path / "damaged", 3)
    for path in (tmp_path / "damaged" / "checkpoints").glob("fit-00-*"):
        damage_flip(path, tmp_path)
    with pytest.warns(TutelageWarning, match="fit-00"):
        resumed_state, _ = start("fitnet", tmp_path / "damaged")
    assert changed(state_of(student), state_of(resumed_state)) == set()


def test_full_disk_stops_the_fit_with_one_line_and_the_fit_can_be_resumed(
    tmp_path: Path,
    start: Start,
    state_of: Any,
    changed: Any,
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., Any],
) -> None:
    student, _ = start("hinton", tmp_path / "uninterrupted")
    with pytest.raises(StoppedError):
        start("hinton", tmp_path / "full", 2)
    before = {path.name: path.read_bytes() for path in (tmp_path / "full" / "checkpoints").iterdir()}

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as context:
        context.setattr("tutelage.files.os.fsync", full)
        with refused("No space left on device", "epoch-00003.ckpt"):
            start("hinton", tmp_path / "full")
    assert {path.name: path.read_bytes() for path in (tmp_path / "full" / "checkpoints").iterdir()} == before
    resumed_state, _ = start("hinton", tmp_path / "full")
    assert changed(state_of(student), state_of(resumed_state)) == set()


@pytest.mark.parametrize(
    ("width", "change", "fragment"),
    [
        (6, {}, "TinyNet"),
        (4, {"lr": 0.9}, "lr: 0.05 there, 0.9 here"),
        (4, {"epochs": 1}, "epochs: 2 there, 1 here"),
        (4, {"optimizer": "AdamW"}, "optimizer: 'SGD' there, 'AdamW' here"),
        (4, {"seed": 1}, "seed: 0 there, 1 here"),
    ],
)
def test_checkpoint_of_another_fit_is_refused(
    width: int,
    change: dict[str, Any],
    fragment: str,
    tmp_path: Path,
    tiny_data: Data,
    tiny_model: Net,
    on_cpu: Hardware,
    refused: Callable[..., Any],
) -> None:
    """A run's folder is checked before its fits; a direct call of fit is checked too."""

    def train(width: int = 4, seed: int = 0, **fields: Any) -> None:
        learner = Learner(tiny_model(width=width), None, {"ce": CrossEntropy()})
        recipe = Recipe(**{"epochs": 2, **fields})
        fit(
            learner,
            data=tiny_data,
            recipe=recipe,
            execution=Execution.on(on_cpu, checkpoints=Checkpoints(tmp_path)),
            seed=seed,
        )

    train()
    train()
    with refused(str(tmp_path), "another fit", fragment, "choose another folder"):
        train(width, **change)


def test_fit_with_an_optimizer_factory_is_resumed(
    tmp_path: Path, tiny_data: Data, tiny_model: Net, on_cpu: Hardware, state_of: Any, changed: Any
) -> None:
    """The factory is another function object in each fit, as in another process."""
    states = []
    for folder, stops in (("uninterrupted", [None]), ("stopped", [1, None])):
        for stop in stops:
            model = tiny_model()
            recipe = Recipe(epochs=2, batch_size=16, optimizer=lambda p: torch.optim.Adam(p, lr=0.01))

            def report(record: dict[str, Any], stop: int | None = stop) -> None:
                if record["epoch"] == stop:
                    raise StoppedError

            learner = Learner(model, None, {"ce": CrossEntropy()})
            checkpoints = Checkpoints(tmp_path / folder)
            try:
                fit(
                    learner,
                    data=tiny_data,
                    recipe=recipe,
                    execution=Execution.on(on_cpu, checkpoints=checkpoints),
                    report=report,
                )
            except StoppedError:
                continue
        states.append(state_of(model))
    assert changed(*states) == set()


# --- non-finite values


class NonFiniteLoss(Term):
    """Cross-entropy that has ``value`` for a sample of one step (counted from 0 over the fit)."""

    def __init__(self, step: int, value: float, one_value: bool = False) -> None:
        super().__init__()
        self.inner, self.step, self.value, self.one_value = CrossEntropy(), step, value, one_value
        self.batches: list[list[int]] = []

    @property
    def teacher_roles(self) -> tuple[str, ...]:
        return ()

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
