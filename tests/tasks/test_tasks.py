"""Every task in the training loop: metrics, resume, selection, methods and errors."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tutelage
from tests.tasks.cases import Case, case_of
from tutelage.config import Hardware, Recipe
from tutelage.data import Data
from tutelage.methods import method
from tutelage.models.tapped import Tapped
from tutelage.tasks import Metric, find_task, task_names
from tutelage.training import Run

SHORT: dict[str, Any] = {"epochs": 2, "batch_size": 16, "lr": 0.05, "device": "cpu", "precision": "float32"}
SHORT |= {"channels_last": False}  # another layout rounds differently, which metrics of maps show


@pytest.fixture(
    params=[
        "classification",
        "detection",
        "ordinal",
        "multi_label",
        "regression",
        "strings",
        "saliency",
        "segmentation",
        "text",
    ]
)
def case(request: pytest.FixtureRequest) -> Case:
    """The case of each task, and of text classification."""
    return case_of(request.param)


@pytest.fixture
def text() -> Case:
    """The case of text classification."""
    return case_of("text")


class StoppedError(Exception):
    """Raised to interrupt a run."""


def make_network(case: Case, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return case.make()


def strict(file: Path) -> Any:
    """Read JSON; NaN and infinity are errors."""

    def refuse(value: str) -> None:
        raise ValueError(f"{value} is no JSON")

    return json.loads(file.read_text(), parse_constant=refuse)


def timeless(value: Any) -> Any:
    """The history without times."""
    times = ("seconds", "latency_ms", "latency_ms_quartiles", "throughput")
    if isinstance(value, dict):
        return {name: timeless(item) for name, item in value.items() if name not in times}
    return value


def test_all_tasks_are_listed() -> None:
    tasks = {"classification", "generation", "multi_label", "ordinal", "regression", "saliency", "segmentation"}
    assert tasks <= {*task_names()}
    for name in task_names():
        task = find_task(name)
        assert task.name == name
        assert task.summary
        assert isinstance(task.metrics[task.main_metric], Metric)
        assert task.metrics[task.main_metric].better in ("higher", "lower")  # type: ignore[union-attr]


def test_plain_training_records_every_metric(case: Case, tmp_path: Path) -> None:
    result = tutelage.train(case.make, case.data, out=tmp_path, **SHORT | {"epochs": 6})
    written_result = strict(tmp_path / "result.json")
    task = find_task(case.task)
    assert (written_result["task"], written_result["main"]) == (case.task, task.main_metric)
    expected = {name for name in task.metrics if "teacher" not in name and name != "agreement"}
    assert expected <= written_result["test"].keys()
    assert written_result["test"]["samples"] == 16
    losses = [record["learners"]["student"][task.loss_name] for record in result.history]
    assert losses[-1] < losses[0]
    assert written_result["data"]["image_shape"] == list(case.data.input_shape)


def test_interrupted_run_equals_an_uninterrupted_one(case: Case, tmp_path: Path) -> None:
    def stop(record: dict[str, Any]) -> None:
        raise StoppedError

    reference = tutelage.train(case.make, case.data, out=tmp_path / "whole", **SHORT)
    with pytest.raises(StoppedError):
        tutelage.train(case.make, case.data, out=tmp_path / "parts", report=stop, **SHORT)
    parts = tutelage.train(case.make, case.data, out=tmp_path / "parts", **SHORT)
    files = [(tmp_path / name / "student.safetensors").read_bytes() for name in ("whole", "parts")]
    assert files[0] == files[1]
    assert timeless(reference.metrics) == timeless(parts.metrics)


def test_finished_run_is_read_back(case: Case, tmp_path: Path) -> None:
    def raise_error(record: dict[str, Any]) -> None:
        raise AssertionError("it trained again")

    first = tutelage.train(case.make, case.data, out=tmp_path, **SHORT)
    second_result = tutelage.train(case.make, case.data, out=tmp_path, report=raise_error, **SHORT)
    assert first.metrics == second_result.metrics
    assert tutelage.evaluate(second_result.model, case.data) == first.metrics["test"]


def test_prediction_script_gives_equal_outputs(case: Case, tmp_path: Path) -> None:
    result = tutelage.train(case.make, case.data, out=tmp_path, **SHORT)
    script = (tmp_path / "load.py").read_text()
    namespace: dict[str, Any] = {"network": case.make(), "__file__": str(tmp_path / "load.py")}
    exec(compile(script.replace("network = ...", "pass"), "load.py", "exec"), namespace)
    inputs = case.data.modality.example(3, case.data.input_shape)
    with torch.no_grad():
        assert torch.equal(namespace["student"](inputs), result.model(inputs))


def test_best_epoch_is_selected_by_the_main_metric(case: Case) -> None:
    result = tutelage.train(case.make, case.data, **SHORT | {"epochs": 4})
    task = find_task(case.task)
    scores = [record["learners"]["student"][f"validation_{task.main_metric}"] for record in result.history]
    better = max if task.metrics[task.main_metric].better == "higher" else min  # type: ignore[union-attr]
    selected = result.metrics["selected"]
    assert selected[f"validation_{task.main_metric}"] == better(scores)
    assert selected["epoch"] == 1 + scores.index(better(scores))
    assert math.isfinite(selected[f"test_{task.main_metric}"])


def test_error_metrics_are_better_if_lower() -> None:
    assert find_task("regression").improves(1.0, 2.0)
    assert not find_task("regression").improves(2.0, 1.0)
    assert find_task("strings").improves(0.5, 0.25)
    assert not find_task("strings").improves(0.5, 0.5)
    assert find_task("regression").improves(2.0, None)


def test_feature_method_trains_under_a_teacher(case: Case, tmp_path: Path) -> None:
    state = tutelage.train(make_network(case), case.data, **SHORT | {"epochs": 12, "lr": 0.2}).model.module
    result = tutelage.distill(state, case.make, case.data, method="rkd", out=tmp_path, **SHORT)
    written_result = strict(tmp_path / "result.json")
    assert written_result["method"] == "rkd"
    assert written_result["forward_passes"]["teacher"] > 0
    assert any(name.startswith("teacher_") for name in written_result["test"])
    network = Tapped(state, *case.data.mean_std)
    teacher = tutelage.evaluate(network, case.data)[find_task(case.task).main_metric]
    teacher_metrics = {"rmse": "teacher_rmse", "accuracy": "teacher_accuracy"}
    main = find_task(case.task).main_metric
    assert written_result["test"][teacher_metrics.get(main, f"teacher_{main}")] == pytest.approx(teacher)
    assert result.history[-1]["learners"]["student"]["distance"] > 0


def test_feature_method_accepts_a_teacher_with_other_outputs(case: Case) -> None:
    other = case_of("classification" if case.task != "classification" else "regression")
    if case.data.modality != other.data.modality:
        pytest.skip("another modality")
    module = make_network(other)
    module.append(nn.Linear(3, 5))  # type: ignore[operator]
    result = tutelage.distill(module, case.make, case.data, method="rkd", **SHORT | {"epochs": 1})
    assert not any(name.startswith("teacher_") for name in result.metrics["test"])


@pytest.mark.parametrize("name", ["hinton", "rkd"])
def test_methods_train_on_texts_without_changes(name: str, text: Case) -> None:
    teacher = tutelage.train(case_of("text").make, text.data, **SHORT | {"epochs": 12, "lr": 0.2}).model
    result = tutelage.distill(teacher, text.make, text.data, method=name, **SHORT)
    assert result.metrics["test"]["samples"] == 16
    assert result.metrics["test"]["teacher_accuracy"] is not None
    if name == "hinton":
        assert result.history[-1]["learners"]["student"]["kd"] < result.history[0]["learners"]["student"]["kd"]


def test_mutual_learning_trains_on_texts(text: Case) -> None:
    result = tutelage.train(text.make, text.data, method="dml", **SHORT)
    assert {"net1", "net2"} <= result.history[0]["learners"].keys()


def test_classification_methods_are_refused_on_other_targets(refused: Any) -> None:
    case = case_of("regression")
    with refused("quantities", "regression", "classification"):
        tutelage.distill(make_network(case), case.make, case.data, method="mlkd", **SHORT)


def test_soft_targets_are_refused_if_outputs_are_not_distributions(refused: Any) -> None:
    case = case_of("regression")
    for name in ("hinton", "dml"):
        with refused("soft targets need logits of classes", "regression"):
            tutelage.distill(make_network(case), case.make, case.data, method=name, **SHORT)


def test_strings_are_distilled_position_by_position() -> None:
    case = case_of("strings")
    teacher = tutelage.train(case.make, case.data, **SHORT | {"epochs": 12, "lr": 0.2}).model
    result = tutelage.distill(teacher, case.make, case.data, method="hinton", **SHORT | {"epochs": 4})
    assert result.metrics["test"]["teacher_string_accuracy"] is not None
    assert result.history[-1]["learners"]["student"]["kd"] < result.history[0]["learners"]["student"]["kd"]


@pytest.mark.parametrize("kind", ["classification", "multi_label", "regression", "strings", "saliency", "text"])
def test_networks_with_other_outputs_are_refused(kind: str, refused: Any) -> None:
    case = case_of(kind)

    def wider() -> nn.Module:
        return nn.Sequential(case.make(), _Wider())

    with refused("returns outputs of shape", "give it"):
        tutelage.train(wider, case.data, **SHORT)


class _Wider(nn.Module):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return torch.cat([values, values], -1)


# --- notes and predictions of methods


def test_notes_are_recorded_with_the_metrics(tmp_path: Path) -> None:
    case = case_of("regression")

    @method(paper="none", family="baseline", task=None)
    def noting(run: Run) -> Tapped:
        """Return a note."""
        from tutelage.training import Learner

        student = run.student()
        run.note(rounds=1)
        run.fit(Learner(student, None, run.label_terms()))
        run.note(widths=[8, 16], rounds=2)
        return student

    tutelage.train(case.make, case.data, method=noting, out=tmp_path, **SHORT)
    assert strict(tmp_path / "result.json")["notes"] == {"rounds": 2, "widths": [8, 16]}


def test_run_without_notes_records_none(tmp_path: Path) -> None:
    case = case_of("regression")
    tutelage.train(case.make, case.data, out=tmp_path, **SHORT | {"epochs": 1})
    assert "notes" not in strict(tmp_path / "result.json")


def test_predictions_of_roles_are_concatenated(case: Case, on_cpu: Hardware) -> None:
    run = Run(
        case.data, lambda: Tapped(make_network(case), *case.data.mean_std), recipe=Recipe(epochs=1), hardware=on_cpu
    )
    model = run.student()
    logits = run.predict(model, case.data.test)
    assert logits.shape[0] == 16
    with torch.no_grad():
        inputs = case.data.modality.to_input(case.data.modality.arrange(case.data.test.inputs[torch.arange(16)]))
        outputs = model.eval().tap(inputs, ("logits", "embedding"))
    torch.testing.assert_close(logits, outputs["logits"])
    torch.testing.assert_close(run.predict(model, case.data.test, ["embedding"]), outputs["embedding"])
    if logits.ndim == 2:
        predictions = run.predict(model, case.data.test, ["embedding", "logits"])
        torch.testing.assert_close(predictions, torch.cat([outputs["embedding"], outputs["logits"]], 1))


def test_validation_and_test_splits_are_created_for_any_targets(case: Case) -> None:
    data = replace(case.data, validation=None)
    data_with_validation = data.hold_out(0.25, seed=1)
    assert data_with_validation.validation is not None
    assert len(data_with_validation.validation) + len(data_with_validation.train) == len(data.train)
    train_part = (data.train.inputs, data.train.labels)
    split = Data.from_arrays(train_part, test_share=0.25, modality=data.modality, targets=data.targets)  # type: ignore[arg-type]
    assert len(split.test) + len(split.train) == len(data.train)
