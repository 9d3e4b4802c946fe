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


def done(file: Path) -> list[FunctionRun]:
    return [FunctionRun(line["condition"], line["row"], line["seed"]) for line in read_lines(file)]


def test_conditions_follow_each_other_and_seeds_and_pairs_are_selected(tmp_path: Path) -> None:
    made_up = study(
        conditions={"easy": "Easy", "hard": "Hard"}, seeds={"easy": (3,), "hard": (0, 1)}, skip={("hard", "b")}
    )
    run_function_study(made_up, tmp_path / "lines.jsonl")
    assert done(tmp_path / "lines.jsonl") == made_up.runs()
    assert [run.name for run in made_up.runs()] == [
        "easy · a · seed 3",
        "easy · b · seed 3",
        "hard · a · seed 0",
        "hard · a · seed 1",
    ]


def test_only_missing_runs_are_done(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    seen: list[Status] = []
    run_function_study(study(), file, only=[FunctionRun("all", "b", 1)])
    first = file.read_text()
    assert missing_runs(study(), file) == [run for run in study().runs() if run != FunctionRun("all", "b", 1)]
    run_function_study(study(), file, watch=seen.append)
    assert file.read_text().startswith(first)
    assert sorted(map(str, done(file))) == sorted(map(str, study().runs()))
    assert (seen[-1].runs, seen[-1].done, seen[-1].skipped) == (4, 4, 1)


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

    broken = study(fail_once_each, conditions={"first": "", "second": ""})
    with pytest.raises(TutelageError, match="1 of 4 runs of made up failed; first · a · seed 1: no luck"):
        run_function_study(broken, file)
    failed = FunctionRun("first", "a", 1)
    assert calls.count(failed) == 2
    assert set(done(file)) == {run for run in broken.runs() if run.condition == "first"} - {failed}
    run_function_study(study(conditions={"first": "", "second": ""}), file)  # repaired
    assert set(done(file)) == set(broken.runs())


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
    compared = compare(study(partly, seeds=3), file, "all", "score")
    assert compared["a"].mean is not None
    assert compared["b"].mean is not None
    assert compared["b"].gain is not None
    assert (compared["a"].mean.n, compared["b"].mean.n, compared["b"].gain.n) == (3, 2, 2)
    assert compared["b"].gain.mean == pytest.approx(1.5)  # 1 and 2 on the seeds that both have
    assert compared["a"].gain is None
