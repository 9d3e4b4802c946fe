"""What a training costs in forward passes, counted by hand beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tutelage.config import Config, Hardware, Recipe
from tutelage.data import Data
from tutelage.methods import find
from tutelage.models.tapped import Tapped
from tutelage.runs import execute
from tutelage.sources import EMA, Frozen
from tutelage.terms import CrossEntropy, Hint, SoftTargets
from tutelage.training import Learner, Run, Step, fit

Net = Callable[..., Tapped]
STEPS = 3  # of 16 of the 48 samples
BATCH = 16
EPOCHS = 2
Passes = Callable[..., list[dict[str, int]]]


@pytest.fixture
def passes(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> Passes:
    """``passes(method, **settings)``: those of each epoch."""

    def go(method: str, **settings: Any) -> list[dict[str, int]]:
        records: list[dict[str, Any]] = []
        run = Run(
            tiny_data,
            tiny_model,
            [tiny_model(seed=1, width=6)],
            recipe=Recipe(epochs=EPOCHS, batch_size=BATCH),
            hardware=on_cpu,
            report=records.append,
        )
        find(method)(run, **settings)
        return [record["forward_passes"] for record in records]

    return go


@pytest.mark.parametrize(
    ("method", "settings", "student", "teacher"),
    [
        ("plain", {}, 1, 0),
        ("hinton", {}, 1, 1),
        ("hinton", {"alpha": 0.0}, 1, 0),  # nobody asks the teacher
        ("at", {"kd_alpha": 0.9}, 1, 1),  # once for all that is read
        ("fitnet", {}, 1, 1),  # the first fit stops at the hint: a pass all the same
        ("dml", {"peers": 2, "update": "synchronous"}, 2, 0),
        ("dml", {"peers": 2}, 2 + 1, 0),
        ("dml", {"peers": 3}, 3 + 2, 0),  # the last one need not be run again
        ("one", {}, 1, 0),  # the branches share their trunk's pass
    ],
)
def test_each_pass_of_a_batch_counts_its_samples(
    method: str, settings: dict[str, Any], student: int, teacher: int, passes: Passes
) -> None:
    """Neither the first look at a batch, nor the held-out part, nor tracing is in it."""
    samples = STEPS * BATCH
    assert passes(method, **settings) == [{"student": student * samples, "teacher": teacher * samples}] * EPOCHS


def test_an_attack_counts_sample_by_sample(passes: Passes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the teacher what Hinton has and each step of each sample that still moves; of the student also the view."""
    from tutelage.attacks import boundary

    moved: list[int] = []

    def attack(network: Callable[[Tensor], Tensor], *rest: Any, **more: Any) -> Tensor:
        def counting(images: Tensor) -> Tensor:
            if inside:
                moved.append(len(images))
            return network(images)

        return original(counting, *rest, **more)

    inside: list[bool] = []
    original, epoch = boundary.boundary_attack, Tapped.train
    monkeypatch.setattr(boundary, "boundary_attack", attack)
    # A model goes to train mode before the first step, after the loop has tried the terms on a first batch.
    monkeypatch.setattr(Tapped, "train", lambda model, mode=True: (inside.append(True), epoch(model, mode))[1])
    first, second = passes("bss", share=0.25, steps=4)
    shown = STEPS * BATCH // 4
    # beta has fallen to 0 at 75 % of the run: of the 6 steps the views of the first 5 are made
    assert first["student"] == STEPS * BATCH + shown
    assert second["student"] == STEPS * BATCH + 2 * BATCH // 4
    views = 5 * BATCH // 4
    assert first["teacher"] + second["teacher"] == 2 * STEPS * BATCH + views + sum(moved)
    assert moved


def test_several_teachers_count_each(tiny_data: Data, tiny_model: Net, on_cpu: Hardware, short: Recipe) -> None:
    learner = Learner(tiny_model(), Frozen(tiny_model(1), tiny_model(2)), {"kd": SoftTargets()})
    fitted = fit(learner, data=tiny_data, recipe=short, hardware=on_cpu)
    assert fitted.history[1]["forward_passes"] == {"student": 48, "teacher": 96}


def test_what_a_network_ran_before_is_not_counted_again(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, short: Recipe
) -> None:
    """An average is a copy of the student: it must not bring the student's count with it."""
    model = tiny_model()
    for _ in range(2):
        learner = Learner(model, EMA(model, 0.9), {"ce": CrossEntropy(), "kd": SoftTargets()})
        fitted = fit(learner, data=tiny_data, recipe=short, hardware=on_cpu)
        assert [record["forward_passes"] for record in fitted.history] == [{"student": 48, "teacher": 48}] * 2


def test_a_rule_of_ones_own_is_counted(tiny_data: Data, tiny_model: Net, on_cpu: Hardware, short: Recipe) -> None:
    def twice(step: Step) -> None:
        (learner,) = step.learners
        step.forward(learner)
        learner.model.tap(step.batch.inputs[:5], ("stage1",))
        step.update(learner, step.loss(learner))

    terms = {"hint": Hint("stage1", "stage1", "mean")}
    learner = Learner(tiny_model(), Frozen(tiny_model(1)), terms)
    fitted = fit(learner, data=tiny_data, recipe=short, hardware=on_cpu, update=twice)
    assert fitted.history[0]["forward_passes"] == {"student": 48 + 3 * 5, "teacher": 48}


def test_compiled_networks_are_counted_alike(
    tiny_data: Data, tiny_model: Net, monkeypatch: pytest.MonkeyPatch, on_cpu: Hardware, short: Recipe
) -> None:
    plain = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: plain(function, backend="eager", **options))
    terms = {"ce": CrossEntropy(), "hint": Hint("stage1", "stage1", "mean")}
    learner = Learner(tiny_model(), Frozen(tiny_model(1)), terms)
    fitted = fit(learner, data=tiny_data, recipe=short, hardware=on_cpu.replace(compile=True))
    assert [record["forward_passes"] for record in fitted.history] == [{"student": 48, "teacher": 48}] * 2


def test_the_result_has_the_sum_over_epochs_and_fits_also_after_a_stop(tiny_npz: str, tmp_path: Path) -> None:
    common: dict[str, Any] = {"data": tiny_npz, "batch_size": 16, "device": "cpu", "workers": 0, "validation": 0.0}
    teacher = execute(Config(student="resnet8x0.5", epochs=2, **common), tmp_path / "teacher")
    assert teacher.metrics["forward_passes"] == {"student": 96, "teacher": 0}
    config = Config(student="resnet8x0.25", teacher=str(tmp_path / "teacher"), method="fitnet", epochs=3, **common)
    whole = execute(config, tmp_path / "whole")
    assert whole.metrics["forward_passes"] == {"student": 144, "teacher": 144}

    def stop(record: dict[str, Any]) -> None:
        if record["fit"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(config, tmp_path / "stopped", report=stop)
    again = execute(config, tmp_path / "stopped")
    assert again.metrics["forward_passes"] == whole.metrics["forward_passes"]
