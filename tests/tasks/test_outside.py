"""A task defined by another package in one file: ordinal grades."""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tutelage
from tests.tasks.cases import case_of
from tutelage.data import Batch, Data, Split
from tutelage.evaluation import predict
from tutelage.methods import method
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.tasks import Compute, Metric, Task, find_task, lookup, task_names
from tutelage.terms import Term
from tutelage.training import Learner, Run

SHORT: dict[str, Any] = {"epochs": 6, "batch_size": 16, "lr": 0.05, "device": "cpu", "precision": "float32"}


class Cumulative(Term):
    """Binary cross-entropy of "above grade k" for each of the first C - 1 logits: (B,) nats."""

    reads_teacher = False

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        assert batch is not None
        steps = student["logits"][:, :-1]
        above = batch.targets[:, None] > torch.arange(steps.shape[1], device=steps.device)
        return F.binary_cross_entropy_with_logits(steps, above.to(steps), reduction="none").mean(1)


class Grades(Task):
    """Ordinal grades: the prediction is the number of the first C - 1 logits above 0."""

    name = "grades"  # type: ignore[assignment]
    metrics: ClassVar[Mapping[str, Any]] = {"mean_distance": Metric("mean distance of the grade", "lower")}

    def check_data(self, data: Data) -> None:
        assert data.targets.single_label

    def label_loss(self) -> Term:
        return Cumulative()

    def evaluate(
        self, model: nn.Module, split: Split, data: Data, compute: Compute, *, teacher: nn.Module | None = None
    ) -> dict[str, Any]:
        logits = predict(model, split, device=compute.device).cpu()
        distance = ((logits[:, :-1] > 0).sum(1) - split.labels).abs().float().mean()
        return {"samples": len(split), "mean_distance": float(distance)}


@method(paper="none", family="baseline", task="grades")
def graded_method(run: Run) -> Tapped:
    """The loss of the task."""
    student = run.student()
    run.fit(Learner(student, None, run.label_terms()))
    return student


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake entry points of a package with this task and of one that cannot be imported."""
    module = types.ModuleType("their_grades")
    module.task, module.number = Grades(), 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "their_grades", module)
    entry_points = {"grades": "their_grades:task", "number": "their_grades:number", "broken": "no_such_package:task"}
    points = [EntryPoint(name, target, "tutelage.tasks") for name, target in entry_points.items()]
    monkeypatch.setattr(lookup, "entry_points", lambda group: points if group == "tutelage.tasks" else [])


def test_task_is_found_by_its_entry_point(package: None, refused: Any) -> None:
    assert "grades" in task_names()
    assert isinstance(find_task("grades"), Grades)
    with refused("'number'", "int", "subclass of Task"):
        find_task("number")
    with refused("'broken'", "no_such_package"):
        find_task("broken")
    with refused("grade", "grades"):
        find_task("grade")


def test_task_of_another_package_trains_selects_and_is_read_back(package: None, tmp_path: Path) -> None:
    case = case_of("classification")
    result = tutelage.train(case.make, case.data, method=graded_method, out=tmp_path, **SHORT)
    assert result.metrics["task"] == "grades"
    assert result.metrics["test"].keys() == {"samples", "mean_distance"}
    scores = [record["learners"]["student"]["validation_mean_distance"] for record in result.history]
    assert result.metrics["selected"]["validation_mean_distance"] == min(scores)
    assert tutelage.evaluate(result.model, case.data, task="grades") == result.metrics["test"]
    assert tutelage.train(case.make, case.data, method=graded_method, out=tmp_path, **SHORT).metrics == result.metrics
