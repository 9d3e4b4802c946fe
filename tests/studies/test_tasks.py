"""Studies of every task: metrics in records, tables, ranks, tuning and the page."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from tests.tasks.cases import case_of
from tests.tasks.test_outside import Grades
from tutelage.cli import main
from tutelage.formats import FORMATS, Format
from tutelage.report.conclusions import conclusion, summary
from tutelage.report.page import page
from tutelage.report.tables import table_as
from tutelage.studies.difference import compare_studies
from tutelage.studies.inspection import inspect
from tutelage.studies.metrics import COMMON_METRICS, metrics_of
from tutelage.studies.results import Results
from tutelage.studies.runner import run_study
from tutelage.studies.study import Study
from tutelage.studies.workers import InlineWorkers
from tutelage.tasks import Metric, find_task, lookup

Refused = Callable[..., AbstractContextManager[None]]
WriteStudy = Callable[..., Path]

NETS = """
from torch import nn

def small(num_classes):
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, num_classes))

def large(num_classes):
    return nn.Sequential(nn.Linear(6, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, num_classes))
"""


@pytest.fixture
def vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Study]:
    """A study of networks of vectors on ``cases:TASK``."""

    module = types.ModuleType("tutelage.data.formats.cases")
    module.load = lambda kind: case_of(kind).data  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tutelage.data.formats.cases", module)
    monkeypatch.setattr("tutelage.data.open.FORMATS", {**FORMATS, "cases": Format(":REPO", "cases")})
    (tmp_path / "nets.py").write_text(NETS)
    nets = tmp_path / "nets.py"

    def make(kind: str, **fields: Any) -> Study:
        study_fields = {"data": f"cases:{kind}", "students": f"{nets}:small", "teachers": f"{nets}:large", "seeds": 2}
        train = {"epochs": 4, "batch_size": 16, "lr": 0.05, "device": "cpu", "precision": "float32"}
        return Study(**{**study_fields, "methods": "rkd", "train": train, **fields})

    return make


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a package with the task ``grades`` were installed."""
    module = types.ModuleType("their_grades")
    module.task = Grades()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "their_grades", module)
    points = [EntryPoint("grades", "their_grades:task", "tutelage.tasks")]
    monkeypatch.setattr(lookup, "entry_points", lambda group: points if group == "tutelage.tasks" else [])


def file_times(out: Path) -> dict[str, int]:
    """When each run was finished."""
    return {file.parent.name: file.stat().st_mtime_ns for file in (out / "runs").glob("*/result.json")}


def test_regression_study_with_budget(vectors: Callable[..., Study], tmp_path: Path) -> None:
    study, out = vectors("regression", budget=3), tmp_path / "out"
    results = run_study(study, out, workers=InlineWorkers())
    assert json.loads((out / "study.json").read_text())["task"] == results.task.name == "regression"
    assert {run["status"] for run in results.runs} == {"done"}
    for run in results.runs:
        result = json.loads((out / run["folder"] / "result.json").read_text())
        assert [run[name] for name in ("rmse", "mae", "r2")] == [result["test"][name] for name in ("rmse", "mae", "r2")]
        assert run["parameters"] == result["cost"]["parameters"]
        assert not {"accuracy", "per_class_accuracy", "reliability", "agreement"} & run.keys()
        assert len(run["curve"]["validation_rmse"]) == 4
    teacher, _, plain, _, rkd, _ = results.runs
    assert plain["teacher_rmse"] == rkd["teacher_rmse"] == teacher["rmse"]

    scores = [trial["score"] for trial in results.trials]
    assert scores == [trial["curve"]["validation_rmse"][-1] for trial in results.trials]
    (selected_trial,) = [trial for trial in results.trials if trial["chosen"]]
    assert selected_trial["score"] == min(scores) < max(scores)  # lower is better
    assert rkd["settings"] == selected_trial["settings"]
    assert page(results).index(f"{min(scores):.3f}") < page(results).index(f"{max(scores):.3f}")  # the best first

    before = file_times(out)
    second_results = run_study(Study(**json.loads((out / "study.json").read_text())), out, workers=InlineWorkers())
    assert second_results.runs == results.runs
    assert file_times(out) == before


def test_tables_ranks_and_conclusions_use_the_main_metric(write_study: WriteStudy, refused: Refused) -> None:
    """Regression: lower is better, no shares."""
    errors = {"plain": 2.0, "at": 1.0, "sp": 3.0, "rkd": 2.5}

    def numbers(record: Mapping[str, Any]) -> Mapping[str, Any]:
        index = [*errors, "teacher"].index(record["method"])
        return {"rmse": errors.get(record["method"], 0.5) + 0.01 * record["seed"] * (1 + index)}

    results = Results.read(write_study(task="regression", numbers=numbers))
    rows = {row.cell.method: row for row in results.table() if row.cell.condition[1] is None}
    assert {name: row.wins for name, row in rows.items()} == {
        "teacher": None,
        "plain": None,
        "at": 3,
        "sp": 0,
        "rkd": 0,
    }
    assert results.table() == results.table("rmse")
    assert list(results.ranks().average) == ["at", "plain", "rkd", "sp"]
    assert conclusion(list(rows.values())).startswith(
        "After Holm's correction for 3 comparisons, clearly worse than the plain student: sp; rkd; clearly better than "
        "the plain student: at."
    )
    first, second, _ = summary(results)
    assert first.endswith("by root mean squared error.")
    assert "clearly better than the plain student: at (-0.99)" in second
    for format in ("md", "latex"):
        text = table_as(results, format).decode()
        assert "root mean squared error" in text
        assert "points" not in text
    assert table_as(results, "csv") == table_as(results, "csv", metric="rmse")
    shares = table_as(results, "md", metric="r2").decode()
    assert "explained share of the variance, % | difference to plain, percentage points" in shares
    assert "| parameters |" in table_as(results, "md", metric="parameters").decode()
    with refused("unknown metric 'accuracy'", "mae", "rmse", "seconds"):
        results.table("accuracy")


def test_page_shows_metrics_of_the_task(write_study: WriteStudy) -> None:
    results = Results.read(write_study(task="regression", noise=(None, "0.2", "0.4")))
    text = page(results)
    for fragment in ("Root mean squared error of each method", "Cost against root mean squared error", "Average rank"):
        assert fragment in text
    assert "Down and to the left is better." in text
    assert "Left of 0 is better." in text
    assert "held-out root mean squared error" in text
    assert "mean absolute error</button>" in text  # a column of the table
    for key in ("classes", "reliability", "risk", "corruptions", "pgd"):
        assert f'<section id="{key}"' not in text
    assert "accuracy" not in text.lower()


def test_headings_keep_the_capitals_of_a_metric() -> None:
    assert [Metric(title, "higher").heading for title in ("mean IoU", "CC")] == ["Mean IoU", "CC"]


def test_studies_are_compared_by_task(write_study: WriteStudy, refused: Refused) -> None:
    a, b = write_study("a", task="regression"), write_study("b", task="regression", numbers=lambda r: {"rmse": 0.5})
    difference = compare_studies(a, b)
    assert (difference.metric, difference.about) == ("rmse", find_task("regression").metrics["rmse"])
    assert difference.changes[0].difference is not None
    with refused("task is 'regression' in the first, 'classification' in the second"):
        compare_studies(a, write_study("c"))


def test_study_file_without_task_is_classification(write_study: WriteStudy) -> None:
    folder = write_study()
    assert "task" not in json.loads((folder / "study.json").read_text())
    assert Results.read(folder).task is find_task("classification")
    assert list(metrics_of(find_task("classification")))[:2] == ["accuracy", "worst_class_accuracy"]


def test_clustering_study_evaluates_plain_students_by_clustering(tiny_npz: str, tmp_path: Path) -> None:
    train = {"epochs": 3, "batch_size": 16, "lr": 0.01, "device": "cpu", "precision": "float32"}
    study = Study(data=tiny_npz, students="resnet8x0.25", teachers="resnet8x0.25", seeds=1, train=train)
    methods = {name: {"method": name} for name in ("triplets", "hinton")}
    results = run_study(study.replace(methods=methods), tmp_path, workers=InlineWorkers())
    assert results.task.name == "clustering"
    teacher, plain, triplets, hinton = results.runs
    assert {"ce", "kd"} <= hinton["curve"]["loss"].keys()
    for run in results.runs:
        assert run["status"] == "done", run["error"]
        assert 0 <= run["nmi"] <= 1
        assert all(value is not None for value in run["curve"]["validation_nmi"])
        assert json.loads((tmp_path / run["folder"] / "result.json").read_text())["task"] == "clustering"
    assert {"ce"} == {name for name, values in plain["curve"]["loss"].items() if None not in values}
    assert triplets["teacher_nmi"] == plain["teacher_nmi"] == teacher["nmi"]
    assert "normalised mutual information" in page(results)

    results_of_dml = run_study(study.replace(methods={"dml": {"method": "dml"}}), tmp_path, workers=InlineWorkers())
    assert results_of_dml.runs[1]["folder"] != plain["folder"]  # the same student, evaluated by other metrics
    assert 0 <= results_of_dml.runs[1]["accuracy"] <= 1


def test_study_of_a_task_of_another_package(package: None, vectors: Callable[..., Study], tmp_path: Path) -> None:
    study = vectors("classification", methods="tests.tasks.test_outside:graded_method", seeds=1)
    results = run_study(study, tmp_path / "out", workers=InlineWorkers())
    assert results.task.name == "grades"
    assert {run["status"] for run in results.runs} == {"done"}
    _, plain, graded_run = results.runs
    assert list(plain["curve"]["loss"]) == ["labels"]  # the loss of the task, not of the data's targets
    assert plain["mean_distance"] == graded_run["mean_distance"]  # which is all that ``graded_method`` does, too
    assert results.ranks().metric == "mean_distance"
    assert "mean distance of the grade" in page(results)


def test_metric_with_name_of_a_record_field_is_refused(
    package: None, vectors: Callable[..., Study], refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = dict(Grades.metrics)
    for name in ("seed", "seconds", "curve"):
        monkeypatch.setattr(Grades, "metrics", {**metrics, name: Metric("theirs", None)})
        with refused("grades", repr(name), "another name"):
            inspect(vectors("classification", methods="tests.tasks.test_outside:graded_method"))


@pytest.mark.parametrize(
    ("fields", "pieces"),
    [
        (
            {"methods": "dkd,triplets"},
            ["a study has one task", "dkd is for classification", "triplets for clust"],
        ),
        ({"data": "cases:regression", "methods": "dkd"}, ["quantities", "regression", "classification"]),
        (
            {"data": "cases:regression,cases:multi_label", "methods": "rkd"},
            ["one task", "for regression", "multi_label"],
        ),
        ({"task": "regression"}, ["the task of the study is regression", "classification", "leave it out"]),
        ({"data": "cases:regression", "methods": "rkd", "evaluate": {"pgd": [0.1]}}, ["attacks", "regression"]),
    ],
)
def test_incompatible_tasks_are_refused_before_training(
    vectors: Callable[..., Study], refused: Refused, fields: dict[str, Any], pieces: list[str]
) -> None:
    with refused(*pieces):
        inspect(vectors("classification", **{"methods": "hinton", **fields}))


def test_a_method_for_another_task_than_that_of_the_data_is_named(
    vectors: Callable[..., Study], refused: Refused
) -> None:
    with refused("the study has the method bss: classification needs one class for each sample", "quantities"):
        inspect(vectors("regression", methods="rkd,bss"))


def test_commands_on_a_multi_label_study(
    vectors: Callable[..., Study],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("tutelage.studies.workers.LocalWorkers", lambda count=None: InlineWorkers())

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["tutelage", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    (tmp_path / "study.json").write_text(json.dumps(vectors("multi_label").model_dump(mode="json")))
    out = tmp_path / "out"
    code, text, err = run("study", tmp_path / "study.json", "--out", out, "--trust")
    assert code == 0, err
    assert "| rkd |" in text
    assert "mean average precision, %" in text
    before = file_times(out)
    code, text, _ = run("study", out / "study.json", "--out", out, "--json", "--trust")
    assert code == 0
    assert {line["metric"] for line in json.loads(text)} == {"mean_average_precision"}
    assert file_times(out) == before
    code, text, _ = run("report", out, "--format", "csv", "--metric", "hamming_loss")
    assert (code, "hamming_loss" in text) == (0, True)
    code, _, err = run("report", out, "--metric", "accuracy")
    assert code == 2
    assert all(name in err for name in ("mean_average_precision", "micro_f1", *COMMON_METRICS))
    folders = sorted((out / "runs").glob("rkd*"))
    code, text, _ = run("compare", *folders)
    assert (code, "test.micro_f1" in text) == (0, True)


@pytest.mark.filterwarnings("ignore:.*chance level")
@pytest.mark.parametrize("kind", ["classification", "multi_label", "regression", "strings", "text"])
def test_every_task_has_a_study(
    kind: str, tmp_path: Path, vectors: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_of(kind)
    module = types.ModuleType("nets_of_cases")
    module.make = lambda: case_of(kind).make()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nets_of_cases", module)
    nets = {"students": "nets_of_cases:make", "teachers": "nets_of_cases:make"}
    results = run_study(vectors(kind, **nets, seeds=1), tmp_path / "out", workers=InlineWorkers())
    assert {run["status"] for run in results.runs} == {"done"}, [run["error"] for run in results.runs]
    assert results.task is find_task(case.task)
    main_metric = results.task.main_metric
    assert all(run[main_metric] is not None for run in results.runs)
    assert table_as(results, "md").count(b"\n") > 3
    title = results.task.metrics[main_metric].title
    assert title in page(results)


def test_study_of_few_shot_backbones(tiny_npz: str, tmp_path: Path) -> None:
    train = {"epochs": 2, "batch_size": 16, "lr": 0.01, "device": "cpu", "precision": "float32"}
    study = Study(data=tiny_npz, students="resnet8x0.25", teachers="resnet8x0.25", seeds=1, train=train)
    results = run_study(
        study.replace(methods={"graph_fewshot": {"method": "graph_fewshot"}}), tmp_path, workers=InlineWorkers()
    )
    assert results.task.name == "few_shot"
    assert [run["status"] for run in results.runs] == ["done"] * 3, [run["error"] for run in results.runs]
    assert all(0 <= run["accuracy_1_shot"] <= 1 for run in results.runs)
    assert results.task.metrics["accuracy_1_shot"].title in page(results)


def test_study_of_generators_is_refused_without_plain_training(tiny_npz: str, tmp_path: Path, refused: Refused) -> None:
    train = {"epochs": 2, "batch_size": 16, "device": "cpu", "precision": "float32"}
    study = Study(data=tiny_npz, students="dcganx0.125", teachers="dcganx0.125", seeds=1, train=train)
    with refused("teacher cannot train dcganx0.125", "generator", "akdg"):
        run_study(study.replace(methods={"akdg": {"method": "akdg"}}), tmp_path, workers=InlineWorkers())
