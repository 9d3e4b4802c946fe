"""Damaged files of one run, folders that are taken away, and programs that cannot start workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tutelage.errors import TutelageWarning
from tutelage.studies.results import Results
from tutelage.studies.runner import run_study
from tutelage.studies.study import Study
from tutelage.studies.workers import InlineWorkers


@pytest.fixture
def study(tiny_npz: str) -> Study:
    train = {"epochs": 2, "batch_size": 16, "lr": 0.1, "device": "cpu"}
    return Study(
        data=tiny_npz, students="resnet8x0.25", teachers="resnet8x0.25", seeds=1, methods="hinton", train=train
    )


def replace_by_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def huge(file: Path) -> None:
    os.truncate(file, 2**40)


def text(content: str | bytes) -> Callable[[Path], None]:
    return lambda file: (file.write_bytes(content.encode() if isinstance(content, str) else content), None)[1]


DAMAGES = {
    "number": ("metrics.jsonl", text("5\n"), "line 1 is 5, not a table"),
    "no learners": ("metrics.jsonl", text('{"learners": {}}\n'), "line 1, learners is empty"),
    "learner": ("metrics.jsonl", text('{"learners": {"student": [1]}}\n'), "learners is [1], not a table"),
    "value": ("metrics.jsonl", text('{"learners": {"student": {"ce": "low"}}}\n'), "ce is 'low', not a number"),
    "infinite": ("metrics.jsonl", text('{"learners": {"student": {"ce": 1e999}}}\n'), "line 1"),
    "half a line": ("metrics.jsonl", text('{"learners": {"stu'), "line 1"),
    "deep": ("metrics.jsonl", text("[" * 100_000), "line 1"),
    "binary": ("metrics.jsonl", text(b"\xff\xfe\0\0"), "line 1"),
    "directory": ("metrics.jsonl", replace_by_folder, "it is a folder"),
    "huge": ("metrics.jsonl", huge, "1,099,511,627,776 bytes"),
    "no test": ("result.json", text('{"method": "plain"}'), "test has no accuracy"),
    "test": ("result.json", text('{"test": 5}'), "result.json, test is 5, not a table"),
    "accuracy": ("result.json", text('{"test": {"accuracy": "good"}}'), "accuracy is 'good', not a number"),
    "record": ("result.json", text('{"test": {"accuracy": 1}, "data": {"record": [5]}}'), "data, record is 5"),
    "passes": ("result.json", text('{"test": {"accuracy": 1}, "forward_passes": 5}'), "forward_passes is 5"),
    "classes": ("result.json", text('{"test": {"accuracy": 1, "per_class_accuracy": 5}}'), "per_class_accuracy is 5"),
}


def test_damaged_run_is_missing_with_the_reason(study: Study, tmp_path: Path) -> None:
    reference = run_study(study, tmp_path, workers=InlineWorkers())
    (damaged_folder,) = (tmp_path / run["folder"] for run in reference.runs if run["method"] == "hinton")
    for name, damage, reason in DAMAGES.values():
        file = damaged_folder / name
        before = file.read_bytes()
        damage(file)
        with pytest.warns(TutelageWarning, match="1 of 3 runs"):
            runs = {run["method"]: run for run in run_study(study, tmp_path, workers=InlineWorkers()).runs}
        assert runs["hinton"]["status"] == "missing"
        assert reason in runs["hinton"]["error"]
        assert f"remove {damaged_folder} and run the study again" in runs["hinton"]["error"]
        assert len(runs["hinton"]["error"]) < 500
        assert runs["hinton"]["accuracy"] is None
        assert {run["status"] for name, run in runs.items() if name != "hinton"} == {"done"}
        assert all(row.mean is None for row in Results.read(tmp_path).table() if row.cell.method == "hinton")
        file.rmdir() if file.is_dir() else file.unlink()
        file.write_bytes(before)
    assert run_study(study, tmp_path, workers=InlineWorkers()).runs == reference.runs


def test_partly_written_files_fail_no_run(study: Study, tmp_path: Path) -> None:
    reference = run_study(study, tmp_path / "whole", workers=InlineWorkers())
    out = tmp_path / "out"
    for run in reference.runs:
        (out / run["folder"]).mkdir(parents=True)
        (out / run["folder"] / ".config.yaml.0123456789ab.tmp").touch()
    (out / "failures").mkdir()
    for name in ("failures/.hinton-seed0.json", ".study.json", ".results.jsonl"):
        (out / f"{name}.0123456789ab.tmp").touch()
    runs = run_study(study, out, workers=InlineWorkers()).runs
    assert {run["status"] for run in runs} == {"done"}
    assert [path for path in out.rglob("*") if path.name.endswith(".tmp")] == []


def test_study_ends_if_its_folder_is_removed(study: Study, tmp_path: Path, refused: Any) -> None:
    import shutil

    out = tmp_path / "out"

    def remove_folder(status: Any) -> None:
        if status.done == 1 and out.exists():
            shutil.rmtree(out)

    with refused(str(out), "was removed, moved or replaced"):
        run_study(study, out, workers=InlineWorkers(), watch=remove_folder)


# --- programs that cannot start workers

PROGRAM = """
import json, sys
from tutelage.studies.runner import run_study
from tutelage.studies.study import Study
from tutelage.errors import TutelageError
study = Study(**json.loads(sys.argv[1]))
try:
    run_study(study, sys.argv[2])
except TutelageError as error:
    print(error)
    sys.exit(2)
"""


def start(
    study: Study, out: Path, *command: str, standard_input: str | None = None
) -> subprocess.CompletedProcess[str]:
    fields = {**study.model_dump(mode="json", exclude_defaults=True)}
    words = [sys.executable, *command, json.dumps(fields), str(out)]
    return subprocess.run(words, input=standard_input, capture_output=True, text=True, timeout=200, check=False)


def test_program_from_standard_input_is_refused_before_training(study: Study, tmp_path: Path) -> None:
    process = start(study, tmp_path / "out", "-", standard_input=PROGRAM)
    assert process.returncode == 2, process.stderr
    assert "<stdin> is no file: save the program as a file" in process.stdout
    assert '__name__ == "__main__":' in process.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.timeout(250)
def test_program_without_main_guard_is_refused_in_one_line(study: Study, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    process = start(study, tmp_path / "out", str(tmp_path / "program.py"))
    assert process.returncode == 2, process.stderr
    (line,) = process.stdout.splitlines()
    assert f"main program {tmp_path / 'program.py'}: call run_study below if __name__ ==" in line
    assert "Traceback" not in process.stderr
    assert not (tmp_path / "out" / "failures").exists()
