"""A fit that was stopped and resumed equals an uninterrupted one, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.resuming import (
    EPOCHS,
    METHODS,
    Net,
    Start,
    StoppedError,
    checkpoint_contents,
    comparable,
    random_weights,
)
from tutelage.config import Hardware, Recipe
from tutelage.data import Batch, Data
from tutelage.methods import find
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.terms import CrossEntropy, Term
from tutelage.training import Learner, Run, Step, fit
from tutelage.training.checkpoint import Checkpoints
from tutelage.training.execution import Execution


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

    reads_teacher = False

    def __init__(self, at: int | None) -> None:
        super().__init__()
        self.inner, self.at, self.calls = CrossEntropy(), at, 0

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
