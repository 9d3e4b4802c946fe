"""Options of a fit: other data, streams, an early end, second views, paired outputs and stateful sample weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.config import Hardware, Recipe
from tutelage.data import Batch, Data
from tutelage.data.loader import Batches
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.sources import EMA, Frozen, Peers, SecondView
from tutelage.terms import CrossEntropy, SoftTargets, Term
from tutelage.terms.term import View
from tutelage.training import Learner, Run, Step, together
from tutelage.training.learner import ForwardPass
from tutelage.training.loop import Record

Net = Callable[..., Tapped]
RECIPE = Recipe(epochs=3, batch_size=16, lr=0.05)


@pytest.fixture
def run_of(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> Callable[..., Run]:
    def make(**options: Any) -> Run:
        return Run(tiny_data, lambda: tiny_model(2), recipe=RECIPE, hardware=on_cpu, seed=4, **options)

    return make


class Flipped(View):
    def __call__(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> Batch:
        return replace(batch, inputs=batch.inputs.flip(3))


def test_stream_yields_one_batch_per_draw(run_of: Any, tiny_data: Data) -> None:
    run, batches = run_of(), []

    def rule(step: Step) -> None:
        batches.append(step.draw("held").index)
        together(step)

    assert tiny_data.validation is not None
    run.fit(Learner(run.student(), None, {"ce": CrossEntropy()}), update=rule, streams={"held": tiny_data.validation})
    assert len(batches) == 9
    assert all(sorted(index.tolist()) == list(range(16)) for index in batches)
    assert not torch.equal(batches[0], batches[1])


def test_unknown_stream_is_refused(run_of: Any, refused: Any) -> None:
    run = run_of()
    with refused("unknown stream 'meta'", "clean"):
        run.fit(
            Learner(run.student(), None, {"ce": CrossEntropy()}),
            update=lambda step: step.draw("meta") and None,
            streams={"clean": run.data.train},
        )


def test_fit_ends_early_by_until_also_after_resume(run_of: Any, tmp_path: Path, state_of: Any, changed: Any) -> None:
    def train(folder: Path) -> tuple[Run, dict[str, Tensor]]:
        run = run_of(folder=folder)
        student = run.student()
        run.fit(Learner(student, None, {"ce": CrossEntropy()}), until=lambda history: history[-1]["epoch"] == 2)
        run.fit(Learner(student, None, {"ce": CrossEntropy()}), epochs=1)
        return run, state_of(student)

    run, state = train(tmp_path / "a")
    assert [len(fit_result.history) for fit_result in run.fits] == [2, 1]
    resumed_run, resumed_state = train(tmp_path / "a")
    assert changed(state, resumed_state) == set()
    assert [len(fit_result.history) for fit_result in resumed_run.fits] == [2, 1]
    assert changed(state, train(tmp_path / "b")[1]) == set()


def test_until_gets_the_records_of_all_epochs_also_after_resume(run_of: Any, tmp_path: Path) -> None:
    def train(stop: int) -> list[list[int]]:
        run, calls = run_of(folder=tmp_path), []

        def until(history: Sequence[Record]) -> bool:
            calls.append([record["epoch"] for record in history])
            return len(history) == stop

        run.fit(Learner(run.student(), None, {"ce": CrossEntropy()}), until=until)
        return calls

    assert train(stop=1) == [[1]]
    assert train(stop=0) == [[1], [1, 2]]  # it is not called after the last epoch


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_optimizers_start_with_a_given_state(optimizer: str, run_of: Any, state_of: Any, changed: Any) -> None:
    """Two fits with a constant rate equal one fit of their epochs, if the batches are the same in each epoch."""
    states = []
    for epochs in ([2], [1, 1], [1, 1]):
        run = run_of()
        learner = Learner(run.student(), None, {"ce": CrossEntropy()})
        fitted: Any = None
        for count in epochs:
            carried = fitted.optimizers if fitted is not None and len(states) < 2 else None
            if carried is not None:
                before = copy.deepcopy(carried)
            fitted = run.fit(
                learner,
                optimizers=carried,
                order=lambda labels, size, generator: torch.arange(48).view(3, 16),
                data=replace(run.data, views=run.data.modality.unaugmented),
                epochs=count,
                schedule="constant",
                optimizer=optimizer,
                lr=0.01,
            )
        states.append(state_of(learner.model))
        if carried is not None:
            (first, *_), (other, *_) = before["student"]["state"].values(), carried["student"]["state"].values()
            assert all(torch.equal(first[name], other[name]) for name in first)  # the given state is not changed
    assert changed(states[0], states[1]) == set()
    assert changed(states[0], states[2])


def test_given_states_of_optimizers_keep_the_options_of_the_fit(run_of: Any) -> None:
    run = run_of()
    learner = Learner(run.student(), None, {"ce": CrossEntropy()})
    first = run.fit(learner, lr=0.01, weight_decay=0.1)
    second = run.fit(learner, lr=0.02, weight_decay=0.2, schedule="constant", optimizers=first.optimizers)
    (group,) = second.optimizers["student"]["param_groups"]
    assert (group["lr"], group["weight_decay"]) == (0.02, 0.2)


def test_fit_on_other_data_than_the_run(run_of: Any, tiny_data: Data) -> None:
    run = run_of()
    smaller = replace(tiny_data, train=tiny_data.train.subset(torch.arange(16)))
    fit_result = run.fit(Learner(run.student(), None, {"ce": CrossEntropy()}), data=smaller)
    assert [record["forward_passes"]["student"] for record in fit_result.history] == [16, 16, 16]


def test_predictions_use_unaugmented_images(run_of: Any, tiny_data: Data) -> None:
    run = run_of()
    student = run.student()
    images = tiny_data.test.inputs.permute(0, 3, 1, 2) / 255  # type: ignore[union-attr]
    torch.testing.assert_close(run.predict(student, tiny_data.test), student.eval()(images).detach())


def test_teacher_gets_the_second_view(run_of: Any, tiny_model: Net) -> None:
    views: list[tuple[Tensor, Tensor | None]] = []

    class RecordingSource(Frozen):
        def __call__(self, batch: Batch, roles: Any, cohort: Any) -> Outputs:
            views.append((batch.inputs, batch.second))
            return super().__call__(batch, roles, cohort)

    run = run_of()
    run.fit(Learner(run.student(), SecondView(RecordingSource(tiny_model(1))), {"kd": SoftTargets()}))
    batches = Batches(run.data.train, batch_size=16, views=run.data.views, seed=4, second=True)
    expected = [batch for epoch in range(3) for batch in batches.epoch(epoch)]
    for (inputs, _), batch in zip(views[1:], expected, strict=True):  # the first is that of the dry run
        assert torch.equal(inputs, batch.second)  # type: ignore[arg-type]
        assert not torch.equal(inputs, batch.inputs)


def test_second_view_of_peers_is_refused(tiny_model: Net) -> None:
    with pytest.raises(TutelageError, match="Peers"):
        SecondView(Peers(tiny_model()))


def test_ema_with_own_running_statistics(tiny_model: Net, tiny_data: Data) -> None:
    student, start = tiny_model(1), tiny_model(2)
    average = EMA(student, 0.99, "own", warm_start=False, start=start)
    before = {name: value.clone() for name, value in average.model.state_dict().items()}
    batch = next(Batches(tiny_data.train, batch_size=16).epoch(0))
    outputs = average(batch, ("logits",), {})
    expected = start.train()(batch.inputs)
    torch.testing.assert_close(outputs["logits"], expected)  # normalised by statistics of the batch
    average.after_step()
    for name, parameter in average.model.named_parameters():
        torch.testing.assert_close(parameter, torch.lerp(before[name], student.get_parameter(name), 0.01))
    for name, buffer in average.model.module.named_buffers():
        torch.testing.assert_close(buffer, start.module.get_buffer(name))  # updated by its own passes


def test_dry_run_does_not_change_an_ema_with_own_statistics(run_of: Any, state_of: Any, changed: Any) -> None:
    run = run_of()
    student = run.student()
    average = EMA(student, 0.99, "own")
    before = state_of(average.model)
    with pytest.raises(ZeroDivisionError):
        run.fit(Learner(student, average, {"kd": SoftTargets()}), update=lambda step: 1 // 0)
    assert changed(before, state_of(average.model)) == set()


class OutputDistance(Term):
    """A distance between two outputs of the student, with gradients to both."""

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        assert teacher is not None
        return (student["logits"] - 2 * teacher["logits"]).square().sum(1)


@pytest.mark.parametrize("source", [None, "a teacher"])
def test_term_between_two_outputs_of_the_student(source: str | None, run_of: Any, tiny_model: Net) -> None:
    run = run_of()
    student, reference = run.student(), run.student().train()
    teacher = Frozen(tiny_model(3)) if source else None
    one_batch = replace(run.data, train=run.data.train.subset(torch.arange(16)))
    changes = {"epochs": 1, "momentum": 0, "nesterov": False, "weight_decay": 0, "schedule": "constant"}
    flipped = Flipped()
    learner = Learner(student, teacher, {"distance": (lambda _: 0.25) * (2 * OutputDistance().between(flipped))})
    assert learner.roles() == learner.roles(flipped) == ("logits",)
    assert learner.teacher_roles() == learner.teacher_roles(view=flipped) == ()
    run.fit(learner, data=one_batch, **changes)
    batch = next(Batches(one_batch.train, batch_size=16, views=one_batch.views, seed=4).epoch(0))
    clean = reference(batch.inputs)
    distance = (reference(batch.inputs.flip(3)) - 2 * clean).square().sum(1).mean()
    (0.5 * distance).backward()
    for a, b in zip(student.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b - 0.05 * b.grad, rtol=1e-4, atol=1e-5)  # type: ignore[operator]


class Lighter(View):
    def __call__(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> Batch:
        return replace(batch, inputs=(batch.inputs + 0.2).clamp(max=1))


@pytest.mark.parametrize("views", [(0, 1), (1, 0), (None, 1), (0, None), (1, 1), (None, None)])
def test_term_between_the_batches_of_two_views(views: tuple[int | None, int | None], run_of: Any) -> None:
    run = run_of()
    student, reference = run.student(), run.student().train()
    one_batch = replace(run.data, train=run.data.train.subset(torch.arange(16)))
    known = (Flipped(), Lighter())
    first, second = (None if number is None else known[number] for number in views)
    learner = Learner(student, None, {"distance": 0.5 * OutputDistance().between(first, second)})
    assert learner.views() == tuple(dict.fromkeys(view for view in (first, second) if view))
    changes = {"epochs": 1, "momentum": 0, "nesterov": False, "weight_decay": 0, "schedule": "constant"}
    fitted = run.fit(learner, data=one_batch, **changes)
    batch = next(Batches(one_batch.train, batch_size=16, views=one_batch.views, seed=4).epoch(0))
    outputs = {
        view: reference((view(batch, Outputs(None), None) if view else batch).inputs) for view in {first, second}
    }
    (0.5 * (outputs[first] - 2 * outputs[second]).square().sum(1).mean()).backward()
    for a, b in zip(student.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b - 0.05 * b.grad, rtol=1e-4, atol=1e-5)  # type: ignore[operator]
    assert fitted.history[0]["forward_passes"]["student"] == 16 * len(outputs)


def test_unread_batch_is_not_run_and_the_learner_is_still_validated(run_of: Any) -> None:
    run = run_of()
    fit_result = run.fit(Learner(run.student(), None, {"ce": CrossEntropy().on(Flipped())}))
    for record in fit_result.history:
        assert record["forward_passes"]["student"] == 48
        assert 0 <= record["learners"]["student"]["validation_accuracy"] <= 1
    assert "student" in fit_result.selected


class CallCount(nn.Module):
    """Weights every sample by the number of calls."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.progress: list[float] = []

    def forward(self, forward_pass: ForwardPass, progress: float) -> Tensor:
        assert not torch.is_grad_enabled()
        assert forward_pass.student["logits"].requires_grad
        self.calls += 1
        self.progress.append(progress)
        return self.calls.expand(len(forward_pass.batch))


def test_state_of_sample_weights_is_resumed(run_of: Any, tmp_path: Path, state_of: Any, changed: Any) -> None:
    class StoppedError(Exception):
        pass

    def train(folder: Path, stop: bool) -> tuple[CallCount, dict[str, Tensor]]:
        def report(record: Any) -> None:
            if stop:
                raise StoppedError

        run, weighting = run_of(folder=folder, report=report), CallCount()
        student = run.student()
        terms = {"ce": CrossEntropy(), "ce2": 0.1 * CrossEntropy()}
        run.fit(Learner(student, None, terms, sample_weight=weighting))
        return weighting, state_of(student)

    weighting, state = train(tmp_path / "a", False)
    assert weighting.calls == 9  # once per step, for any number of terms
    assert weighting.progress == pytest.approx([step / 9 for step in range(9)])
    with pytest.raises(StoppedError):
        train(tmp_path / "b", True)
    resumed_run, resumed_state = train(tmp_path / "b", False)
    assert resumed_run.calls == 9
    assert len(resumed_run.progress) == 6
    assert changed(state, resumed_state) == set()


def test_with_parameters_allows_second_derivatives_and_does_not_change_the_network(
    tiny_model: Net, state_of: Any, changed: Any
) -> None:
    model = tiny_model(1).train()
    before, inputs = state_of(model), torch.rand(8, 1, 8, 8)
    parameters = dict(model.named_parameters())
    labels = torch.arange(8) % 4
    gradients = torch.autograd.grad(
        F.cross_entropy(model.with_parameters(parameters, inputs), labels), list(parameters.values()), create_graph=True
    )
    virtual_parameters = {name: p - 0.5 * g for (name, p), g in zip(parameters.items(), gradients, strict=True)}
    loss = F.cross_entropy(model.with_parameters(virtual_parameters, inputs), labels)
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, list(parameters.values())))
    assert changed(before, state_of(model)) == set()
    assert model.passes == 16
