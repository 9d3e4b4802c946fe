"""The recorded numbers of forward passes equal numbers counted by hand."""

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
from tutelage.training.execution import Execution

Net = Callable[..., Tapped]
STEPS = 3  # per epoch of 48 samples
BATCH = 16
EPOCHS = 2
Passes = Callable[..., list[dict[str, int]]]


@pytest.fixture
def passes(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> Passes:
    """``passes(method, **settings)``: the recorded forward passes of each epoch."""

    def train(method: str, **settings: Any) -> list[dict[str, int]]:
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

    return train


@pytest.mark.parametrize(
    ("method", "settings", "student", "teacher"),
    [
        ("plain", {}, 1, 0),
        ("hinton", {}, 1, 1),
        ("hinton", {"alpha": 0.0}, 1, 0),  # no term reads the teacher
        ("at", {"kd_alpha": 0.9}, 1, 1),  # one pass for all layers and logits
        ("fitnet", {}, 1, 1),  # a pass of the first fit, which ends at the hint layer, counts as one
        ("dml", {"peers": 2, "update": "synchronous"}, 2, 0),
        ("dml", {"peers": 2}, 2 + 1, 0),
        ("dml", {"peers": 3}, 3 + 2, 0),  # the last network is not run a second time
        ("one", {}, 1, 0),  # the branches share their trunk's pass
    ],
)
def test_every_pass_counts_the_samples_of_its_batch(
    method: str, settings: dict[str, Any], student: int, teacher: int, passes: Passes
) -> None:
    """The dry run, validation and tracing are not counted."""
    samples = STEPS * BATCH
    assert passes(method, **settings) == [{"student": student * samples, "teacher": teacher * samples}] * EPOCHS


def test_attack_steps_count_each_sample(passes: Passes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher also runs each attack step of each sample still attacked; the student also runs the view."""
    from tutelage.attacks import boundary

    attacked_counts: list[int] = []

    def attack(network: Callable[[Tensor], Tensor], *arguments: Any, **options: Any) -> Tensor:
        def counting(images: Tensor) -> Tensor:
            if training:
                attacked_counts.append(len(images))
            return network(images)

        return original(counting, *arguments, **options)

    training: list[bool] = []
    original, train = boundary.boundary_attack, Tapped.train
    monkeypatch.setattr(boundary, "boundary_attack", attack)
    # The loop sets train mode before the first step, after the dry run.
    monkeypatch.setattr(Tapped, "train", lambda model, mode=True: (training.append(True), train(model, mode))[1])
    first, second = passes("bss", share=0.25, steps=4)
    view_samples = STEPS * BATCH // 4
    # beta falls to 0 at 75 % of the run, so only the first 5 of 6 steps make a view.
    assert first["student"] == STEPS * BATCH + view_samples
    assert second["student"] == STEPS * BATCH + 2 * BATCH // 4
    all_view_samples = 5 * BATCH // 4
    assert first["teacher"] + second["teacher"] == 2 * STEPS * BATCH + all_view_samples + sum(attacked_counts)
    assert attacked_counts


def test_passes_of_all_teachers_are_counted(tiny_data: Data, tiny_model: Net, on_cpu: Hardware, short: Recipe) -> None:
    learner = Learner(tiny_model(), Frozen(tiny_model(1), tiny_model(2)), {"kd": SoftTargets()})
    fit_result = fit(learner, data=tiny_data, recipe=short, execution=Execution.on(on_cpu))
    assert fit_result.history[1]["forward_passes"] == {"student": 48, "teacher": 96}


def test_passes_before_the_fit_are_not_counted(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, short: Recipe
) -> None:
    """An EMA source copies the student, and must not copy its count."""
    model = tiny_model()
    for _ in range(2):
        learner = Learner(model, EMA(model, 0.9), {"ce": CrossEntropy(), "kd": SoftTargets()})
        fit_result = fit(learner, data=tiny_data, recipe=short, execution=Execution.on(on_cpu))
        assert [record["forward_passes"] for record in fit_result.history] == [{"student": 48, "teacher": 48}] * 2


def test_passes_of_a_custom_update_rule_are_counted(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, short: Recipe
) -> None:
    def extra_pass(step: Step) -> None:
        (learner,) = step.learners
        step.forward(learner)
        learner.model.tap(step.batch.inputs[:5], ("stage1",))
        step.update(learner, step.loss(learner))

    terms = {"hint": Hint("stage1", "stage1", "mean")}
    learner = Learner(tiny_model(), Frozen(tiny_model(1)), terms)
    fit_result = fit(learner, data=tiny_data, recipe=short, execution=Execution.on(on_cpu), update=extra_pass)
    assert fit_result.history[0]["forward_passes"] == {"student": 48 + 3 * 5, "teacher": 48}


def test_passes_of_compiled_networks_are_counted(
    tiny_data: Data, tiny_model: Net, monkeypatch: pytest.MonkeyPatch, on_cpu: Hardware, short: Recipe
) -> None:
    torch_compile = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda function, **options: torch_compile(function, backend="eager", **options)
    )
    terms = {"ce": CrossEntropy(), "hint": Hint("stage1", "stage1", "mean")}
    learner = Learner(tiny_model(), Frozen(tiny_model(1)), terms)
    fit_result = fit(learner, data=tiny_data, recipe=short, execution=Execution.on(on_cpu.replace(compile=True)))
    assert [record["forward_passes"] for record in fit_result.history] == [{"student": 48, "teacher": 48}] * 2


def test_result_has_the_sum_over_epochs_and_fits_also_after_resume(tiny_npz: str, tmp_path: Path) -> None:
    common: dict[str, Any] = {"data": tiny_npz, "batch_size": 16, "device": "cpu", "workers": 0, "validation": 0.0}
    teacher = execute(Config(student="resnet8x0.5", epochs=2, **common), tmp_path / "teacher")
    assert teacher.metrics["forward_passes"] == {"student": 96, "teacher": 0}
    config = Config(student="resnet8x0.25", teacher=str(tmp_path / "teacher"), method="fitnet", epochs=3, **common)
    uninterrupted = execute(config, tmp_path / "uninterrupted")
    assert uninterrupted.metrics["forward_passes"] == {"student": 144, "teacher": 144}

    def stop(record: dict[str, Any]) -> None:
        if record["fit"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(config, tmp_path / "stopped", report=stop)
    second_result = execute(config, tmp_path / "stopped")
    assert second_result.metrics["forward_passes"] == uninterrupted.metrics["forward_passes"]
