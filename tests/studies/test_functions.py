"""Studies of functions: which runs are done, and what is recorded."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import pytest

from tutelage.errors import TutelageError, TutelageWarning
from tutelage.studies.functions import (
    FunctionRun,
    FunctionStudy,
    Measure,
    compare,
    missing_runs,
    read_lines,
    run_function_study,
    values_of,
)
from tutelage.studies.jobs import Status
from tutelage.studies.workers import LocalWorkers


def measure(condition: str, row: str, seed: int, folder: Path) -> Mapping[str, float]:
    return {"score": seed + (1.0 if row == "b" else 0.0), "process": os.getpid()}


def study(function: Measure = measure, **fields: object) -> FunctionStudy:
    settings = {"rows": ("a", "b"), "baseline": "a", "seeds": 2, **fields}
    return FunctionStudy("made up", function, **settings)  # type: ignore[arg-type]


def read_runs(file: Path) -> list[FunctionRun]:
    return [FunctionRun(line["condition"], line["row"], line["seed"]) for line in read_lines(file)]


def test_conditions_follow_each_other_and_seeds_and_pairs_are_selected(tmp_path: Path) -> None:
    example_study = study(
        conditions={"easy": "Easy", "hard": "Hard"}, seeds={"easy": (3,), "hard": (0, 1)}, skip={("hard", "b")}
    )
    run_function_study(example_study, tmp_path / "lines.jsonl")
    assert read_runs(tmp_path / "lines.jsonl") == example_study.runs()
    assert [run.name for run in example_study.runs()] == [
        "easy · a · seed 3",
        "easy · b · seed 3",
        "hard · a · seed 0",
        "hard · a · seed 1",
    ]


def test_only_missing_runs_are_done(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    statuses: list[Status] = []
    run_function_study(study(), file, only=[FunctionRun("all", "b", 1)])
    first = file.read_text()
    assert missing_runs(study(), file) == [run for run in study().runs() if run != FunctionRun("all", "b", 1)]
    run_function_study(study(), file, watch=statuses.append)
    assert file.read_text().startswith(first)
    assert sorted(map(str, read_runs(file))) == sorted(map(str, study().runs()))
    assert (statuses[-1].runs, statuses[-1].done, statuses[-1].skipped) == (4, 4, 1)


def test_function_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    folders: list[Path] = []

    def remember(condition: str, row: str, seed: int, folder: Path) -> Mapping[str, float]:
        folders.append(folder)
        return {}

    run_function_study(study(remember, rows=("a b",), seeds=1), tmp_path / "lines.jsonl", folder=tmp_path)
    assert folders == [tmp_path / "made up" / "all" / "a-b-0"]


def test_failed_run_is_tried_twice_and_has_no_line_but_the_others_of_its_condition_do(tmp_path: Path) -> None:
    file, calls = tmp_path / "lines.jsonl", list[FunctionRun]()

    def fail_once_each(condition: str, row: str, seed: int, folder: Path) -> Mapping[str, float]:
        calls.append(FunctionRun(condition, row, seed))
        if row == "a" and seed == 1:
            raise ValueError("no luck")
        return {"score": 1.0}

    failing_study = study(fail_once_each, conditions={"first": "", "second": ""})
    with pytest.raises(TutelageError, match="1 of 4 runs of made up failed; first · a · seed 1: no luck"):
        run_function_study(failing_study, file)
    failed_run = FunctionRun("first", "a", 1)
    assert calls.count(failed_run) == 2
    assert set(read_runs(file)) == {run for run in failing_study.runs() if run.condition == "first"} - {failed_run}
    run_function_study(study(conditions={"first": "", "second": ""}), file)  # repaired
    assert set(read_runs(file)) == set(failing_study.runs())


def test_warnings_name_the_run(tmp_path: Path) -> None:
    def warn(condition: str, row: str, seed: int, folder: Path) -> Mapping[str, float]:
        warnings.warn("a small batch", TutelageWarning, stacklevel=1)
        return {}

    with pytest.warns(TutelageWarning, match="all · a · seed 0: a small batch"):
        run_function_study(study(warn, rows=("a",), seeds=1), tmp_path / "lines.jsonl")


@pytest.mark.timeout(200)
def test_processes_record_the_same_numbers(tmp_path: Path) -> None:
    run_function_study(study(), tmp_path / "here.jsonl")
    run_function_study(study(), tmp_path / "processes.jsonl", workers=LocalWorkers(2))
    scores = [values_of(study(), tmp_path / f"{name}.jsonl", "all", "score") for name in ("here", "processes")]
    assert scores[0] == scores[1] == {"a": {0: 0.0, 1: 1.0}, "b": {0: 1.0, 1: 2.0}}
    processes = {line["measured"]["process"] for line in read_lines(tmp_path / "processes.jsonl")}
    assert os.getpid() not in processes


def test_unmeasured_metrics_are_left_out_of_the_comparison(tmp_path: Path) -> None:
    def partly(condition: str, row: str, seed: int, folder: Path) -> Mapping[str, float]:
        return {"score": math.nan if row == "b" and seed == 2 else seed + (row == "b") * (1 + seed)}

    file = tmp_path / "lines.jsonl"
    run_function_study(study(partly, seeds=3), file)
    assert [line["measured"]["score"] for line in read_lines(file)][-1] is None
    comparison = compare(study(partly, seeds=3), file, "all", "score")
    assert comparison["a"].mean is not None
    assert comparison["b"].mean is not None
    assert comparison["b"].gain is not None
    assert (comparison["a"].mean.n, comparison["b"].mean.n, comparison["b"].gain.n) == (3, 2, 2)
    assert comparison["b"].gain.mean == pytest.approx(1.5)  # 1 and 2 on the seeds that both have
    assert comparison["a"].gain is None
