"""What a method may ask of the loop: other data, streams, an early end, a second view, pairs of answers, weights."""

from __future__ import annotations

from collections.abc import Callable
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
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.sources import EMA, Frozen, Peers, SecondView
from tutelage.terms import CrossEntropy, SoftTargets, Term
from tutelage.terms.term import View
from tutelage.training import Learner, Run, Step, together
from tutelage.training.learner import ForwardPass

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


def test_a_stream_gives_a_batch_a_step(run_of: Any, tiny_data: Data) -> None:
    run, drawn = run_of(), []

    def rule(step: Step) -> None:
        drawn.append(step.draw("held").index)
        together(step)

    assert tiny_data.validation is not None
    run.fit(Learner(run.student(), None, {"ce": CrossEntropy()}), update=rule, streams={"held": tiny_data.validation})
    assert len(drawn) == 9
    assert all(sorted(index.tolist()) == list(range(16)) for index in drawn)
    assert not torch.equal(drawn[0], drawn[1])


def test_a_stream_that_is_not_there_is_refused(run_of: Any, refused: Any) -> None:
    run = run_of()
    with refused("unknown stream 'meta'", "clean"):
        run.fit(
            Learner(run.student(), None, {"ce": CrossEntropy()}),
            update=lambda step: step.draw("meta") and None,
            streams={"clean": run.data.train},
        )


def test_a_fit_ends_where_it_is_told_and_resumes_so(run_of: Any, tmp_path: Path, state_of: Any, changed: Any) -> None:
    def go(folder: Path) -> tuple[Run, dict[str, Tensor]]:
        run = run_of(folder=folder)
        student = run.student()
        run.fit(Learner(student, None, {"ce": CrossEntropy()}), until=lambda record: record["epoch"] == 2)
        run.fit(Learner(student, None, {"ce": CrossEntropy()}), epochs=1)
        return run, state_of(student)

    run, state = go(tmp_path / "a")
    assert [len(fitted.history) for fitted in run.fits] == [2, 1]
    again, same = go(tmp_path / "a")
    assert changed(state, same) == set()
    assert [len(fitted.history) for fitted in again.fits] == [2, 1]
    assert changed(state, go(tmp_path / "b")[1]) == set()


def test_a_fit_on_other_data(run_of: Any, tiny_data: Data) -> None:
    run = run_of()
    part = replace(tiny_data, train=tiny_data.train.subset(torch.arange(16)))
    fitted = run.fit(Learner(run.student(), None, {"ce": CrossEntropy()}), data=part)
    assert [record["forward_passes"]["student"] for record in fitted.history] == [16, 16, 16]


def test_predictions_are_of_the_images_as_they_are(run_of: Any, tiny_data: Data) -> None:
    run = run_of()
    student = run.student()
    images = tiny_data.test.inputs.permute(0, 3, 1, 2) / 255  # type: ignore[union-attr]
    torch.testing.assert_close(run.predict(student, tiny_data.test), student.eval()(images).detach())


def test_the_teacher_sees_the_second_view(run_of: Any, tiny_model: Net) -> None:
    shown: list[tuple[Tensor, Tensor | None]] = []

    class Watched(Frozen):
        def __call__(self, batch: Batch, roles: Any, cohort: Any) -> Outputs:
            shown.append((batch.inputs, batch.second))
            return super().__call__(batch, roles, cohort)

    run = run_of()
    run.fit(Learner(run.student(), SecondView(Watched(tiny_model(1))), {"kd": SoftTargets()}))
    batches = Batches(run.data.train, batch_size=16, views=run.data.views, seed=4, second=True)
    expected = [batch for epoch in range(3) for batch in batches.epoch(epoch)]
    for (inputs, _), batch in zip(shown[1:], expected, strict=True):  # the first is the dry run's
        assert torch.equal(inputs, batch.second)  # type: ignore[arg-type]
        assert not torch.equal(inputs, batch.inputs)


def test_a_second_view_is_for_sources_that_answer_for_themselves(tiny_model: Net) -> None:
    with pytest.raises(ValueError, match="Peers"):
        SecondView(Peers(tiny_model()))


def test_an_average_with_statistics_of_its_own(tiny_model: Net, tiny_data: Data) -> None:
    student, start = tiny_model(1), tiny_model(2)
    average = EMA(student, 0.99, "own", warm_start=False, start=start)
    before = {name: value.clone() for name, value in average.model.state_dict().items()}
    batch = next(Batches(tiny_data.train, batch_size=16).epoch(0))
    answer = average(batch, ("logits",), {})
    expected = start.train()(batch.inputs)
    torch.testing.assert_close(answer["logits"], expected)  # statistics of the batch
    average.after_step()
    for name, parameter in average.model.named_parameters():
        torch.testing.assert_close(parameter, torch.lerp(before[name], student.get_parameter(name), 0.01))
    for name, buffer in average.model.module.named_buffers():
        torch.testing.assert_close(buffer, start.module.get_buffer(name))  # gathered by its own passes


def test_a_dry_run_leaves_such_an_average_as_it_was(run_of: Any, state_of: Any, changed: Any) -> None:
    run = run_of()
    student = run.student()
    average = EMA(student, 0.99, "own")
    before = state_of(average.model)
    with pytest.raises(ZeroDivisionError):
        run.fit(Learner(student, average, {"kd": SoftTargets()}), update=lambda step: 1 // 0)
    assert changed(before, state_of(average.model)) == set()


class Apart(Term):
    """The squared distance of two answers, through which gradients flow on both sides."""

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        assert teacher is not None
        return (student["logits"] - 2 * teacher["logits"]).square().sum(1)


@pytest.mark.parametrize("source", [None, "a teacher"])
def test_a_term_between_two_answers_of_the_student(source: str | None, run_of: Any, tiny_model: Net) -> None:
    run = run_of()
    student, twin = run.student(), run.student().train()
    teacher = Frozen(tiny_model(3)) if source else None
    one = replace(run.data, train=run.data.train.subset(torch.arange(16)))
    changes = {"epochs": 1, "momentum": 0, "nesterov": False, "weight_decay": 0, "schedule": "constant"}
    flipped = Flipped()
    learner = Learner(student, teacher, {"apart": (lambda _: 0.25) * (2 * Apart().between(flipped))})
    assert learner.roles() == learner.roles(flipped) == ("logits",)
    assert learner.teacher_roles() == learner.teacher_roles(view=flipped) == ()
    run.fit(learner, data=one, **changes)
    batch = next(Batches(one.train, batch_size=16, views=one.views, seed=4).epoch(0))
    clean = twin(batch.inputs)
    gap = (twin(batch.inputs.flip(3)) - 2 * clean).square().sum(1).mean()
    (0.5 * gap).backward()
    for a, b in zip(student.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b - 0.05 * b.grad, rtol=1e-4, atol=1e-5)  # type: ignore[operator]


def test_without_a_reader_the_batch_at_hand_is_not_run_and_the_learner_still_judged(run_of: Any) -> None:
    run = run_of()
    fitted = run.fit(Learner(run.student(), None, {"ce": CrossEntropy().on(Flipped())}))
    for record in fitted.history:
        assert record["forward_passes"]["student"] == 48
        assert 0 <= record["learners"]["student"]["validation_accuracy"] <= 1
    assert "student" in fitted.selected


class Counting(nn.Module):
    """Weighs each sample by how often it was asked."""

    asked: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("asked", torch.zeros(()))
        self.seen: list[float] = []

    def forward(self, forward_pass: ForwardPass, progress: float) -> Tensor:
        assert not torch.is_grad_enabled()
        assert forward_pass.student["logits"].requires_grad
        self.asked += 1
        self.seen.append(progress)
        return self.asked.expand(len(forward_pass.batch))


def test_a_weighting_has_a_state_that_is_kept(run_of: Any, tmp_path: Path, state_of: Any, changed: Any) -> None:
    class StoppedError(Exception):
        pass

    def go(folder: Path, stop: bool) -> tuple[Counting, dict[str, Tensor]]:
        def report(record: Any) -> None:
            if stop:
                raise StoppedError

        run, weighting = run_of(folder=folder, report=report), Counting()
        student = run.student()
        terms = {"ce": CrossEntropy(), "again": 0.1 * CrossEntropy()}
        run.fit(Learner(student, None, terms, sample_weight=weighting))
        return weighting, state_of(student)

    weighting, state = go(tmp_path / "a", False)
    assert weighting.asked == 9  # once a step, whatever the number of terms
    assert weighting.seen == pytest.approx([step / 9 for step in range(9)])
    with pytest.raises(StoppedError):
        go(tmp_path / "b", True)
    resumed, same = go(tmp_path / "b", False)
    assert resumed.asked == 9
    assert len(resumed.seen) == 6
    assert changed(state, same) == set()


def test_other_parameters_are_differentiated_twice_and_leave_the_network(
    tiny_model: Net, state_of: Any, changed: Any
) -> None:
    model = tiny_model(1).train()
    before, inputs = state_of(model), torch.rand(8, 1, 8, 8)
    parameters = dict(model.named_parameters())
    labels = torch.arange(8) % 4
    step = torch.autograd.grad(
        F.cross_entropy(model.with_parameters(parameters, inputs), labels), list(parameters.values()), create_graph=True
    )
    moved = {name: p - 0.5 * g for (name, p), g in zip(parameters.items(), step, strict=True)}
    loss = F.cross_entropy(model.with_parameters(moved, inputs), labels)
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, list(parameters.values())))
    assert changed(before, state_of(model)) == set()
    assert model.passes == 16
