"""A study whose folder cannot be written to, holds a file of the user's, or is damaged; paths with a ``~``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

import tutelage
from tutelage.cli import main
from tutelage.errors import TutelageWarning
from tutelage.runs.code import code_of_network
from tutelage.studies import workers
from tutelage.studies.inspection import inspect
from tutelage.studies.plan import is_trained
from tutelage.studies.runner import run_study
from tutelage.studies.study import Study, read_study
from tutelage.studies.workers import InlineWorkers

Refused = Callable[..., AbstractContextManager[None]]
TRAIN = {"epochs": 6, "batch_size": 8, "lr": 0.1, "device": "cpu"}


@pytest.fixture
def fields(tiny_npz: str) -> dict[str, Any]:
    study_fields = {"data": tiny_npz, "students": "resnet8x0.25", "teachers": "resnet8x0.25", "methods": "hinton"}
    return {**study_fields, "seeds": 1, "train": TRAIN}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """Run a command line in this process; its exit code and all that it printed."""
    monkeypatch.setattr(workers, "LocalWorkers", lambda count=None: InlineWorkers())

    def call(*words: object) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["tutelage", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out + err

    return call


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# --- a medium that cannot be written


def test_finished_study_on_read_only_medium_is_read(
    fields: dict[str, Any], tmp_path: Path, read_only: Any, run: Any, refused: Refused
) -> None:
    medium = tmp_path / "medium"
    (tmp_path / "mine.json").write_text(json.dumps(fields))
    first = run("study", tmp_path / "mine.json", "--out", medium / "study")
    assert first[0] == 0
    (medium / "study" / ".lock").unlink()  # a copy on a medium may lack it
    before = contents(medium)
    read_only(medium)
    code, output = run("study", tmp_path / "mine.json", "--out", medium / "study")
    assert code == 0
    assert "is not writable; tutelage report" in output
    table = [line for line in first[1].splitlines() if line.startswith("|")]
    assert table
    assert [line for line in output.splitlines() if line.startswith("|")] == table
    second_results = run_study(Study(**fields), medium / "study", workers=InlineWorkers())
    assert {run_["status"] for run_ in second_results.runs} == {"done"}
    assert contents(medium) == before
    with refused("cannot be written to", "lacks 3 runs of this study", "choose another folder"):
        run_study(Study(**{**fields, "seeds": [5]}), medium / "study", workers=InlineWorkers())
    with refused("cannot be written to", "is that of another study"):  # fewer runs than there are
        run_study(Study(**{**fields, "methods": "plain"}), medium / "study", workers=InlineWorkers())
    for words in (
        ("report", medium / "study", "--out", tmp_path / "page.html"),
        ("report", medium / "study", "--format", "md"),
    ):
        assert run(*words)[0] == 0
    code, output = run("report", medium / "study")
    assert code == 2
    assert "Read-only file system" in output
    assert run("compare", medium / "study", medium / "study")[0] == 0


def test_unfinished_study_on_read_only_medium_is_refused(
    fields: dict[str, Any], tmp_path: Path, read_only: Any, refused: Refused
) -> None:
    results = run_study(Study(**fields), tmp_path / "study", workers=InlineWorkers())
    shutil.rmtree(tmp_path / "study" / results.runs[-1]["folder"])
    read_only(tmp_path)
    with refused("cannot be written to", "lacks 1 runs", "choose another folder"):
        run_study(Study(**fields), tmp_path / "study", workers=InlineWorkers())


def test_tuned_study_on_read_only_medium_is_read(fields: dict[str, Any], tmp_path: Path, read_only: Any) -> None:
    study = Study(**{**fields, "budget": 2, "train": {**TRAIN, "validation": 0.2}})
    first = run_study(study, tmp_path / "study", workers=InlineWorkers())
    read_only(tmp_path)
    assert run_study(study, tmp_path / "study", workers=InlineWorkers()).runs == first.runs


# --- what is the user's


def test_study_file_of_the_user_is_not_replaced(fields: dict[str, Any], tmp_path: Path, refused: Refused) -> None:
    file = tmp_path / "study.json"
    for text in (json.dumps(fields), json.dumps(fields, indent=2) + "\n", "not JSON"):
        file.write_text(text)
        with refused(file, "would be replaced", "choose another folder"):
            run_study(Study(**fields), tmp_path, workers=InlineWorkers())
        assert file.read_text() == text


def test_declaration_of_killed_study_is_replaced(fields: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "study.json"
    file.write_text(json.dumps(Study(**{**fields, "seeds": 2}).as_json(), indent=2) + "\n")
    assert len(run_study(Study(**fields), tmp_path, workers=InlineWorkers()).runs) == 3
    file.write_text("damaged")  # beside results
    assert len(run_study(Study(**fields), tmp_path, workers=InlineWorkers()).runs) == 3


# --- what is said of runs without numbers


def test_message_for_damaged_run_does_not_promise_a_retry(fields: dict[str, Any], tmp_path: Path) -> None:
    results = run_study(Study(**fields), tmp_path, workers=InlineWorkers())
    (damaged_folder,) = (tmp_path / run["folder"] for run in results.runs if run["method"] == "hinton")
    (damaged_folder / "metrics.jsonl").write_text("5\n")
    with pytest.warns(TutelageWarning) as records:
        run_study(Study(**fields), tmp_path, workers=InlineWorkers())
    (text,) = (str(entry.message) for entry in records if entry.category is TutelageWarning)
    assert "1 of 3 runs of the study cannot be read" in text
    assert f"remove {damaged_folder}, and the same study trains it again" in text
    assert "tries" not in text
    shutil.rmtree(damaged_folder)  # what it says is true
    second_results = run_study(Study(**fields), tmp_path, workers=InlineWorkers())
    assert {run["status"] for run in second_results.runs} == {"done"}
    assert [run["accuracy"] for run in second_results.runs] == [run["accuracy"] for run in results.runs]


# --- a study in Python


def test_study_program_with_evaluation_runs_from_command_line(fields: dict[str, Any], tmp_path: Path, run: Any) -> None:
    program = tmp_path / "mine.py"
    program.write_text(
        "import tutelage\nfrom tutelage.config import ExtraEvaluation\n"
        f"study = tutelage.Study(**{ {**fields, 'seeds': [3]}!r}, evaluate=ExtraEvaluation(pgd=(0.1,)))\n"
    )
    code, output = run("study", program, "--out", tmp_path / "study", "--lr", "0.05")
    assert code == 0, output
    declaration = json.loads((tmp_path / "study" / "study.json").read_text())
    assert declaration["evaluate"]["pgd"] == [0.1]
    assert (declaration["train"]["lr"], declaration["seeds"], declaration["name"]) == (0.05, [3], "study")
    assert Study(**read_study(program)).evaluate.pgd == (0.1,)


# --- paths


def test_home_folder_is_expanded_in_all_paths(
    fields: dict[str, Any], tiny_npz: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Any
) -> None:
    home_folder = tmp_path / "home"
    home_folder.mkdir()
    monkeypatch.setenv("HOME", str(home_folder))
    monkeypatch.chdir(tmp_path)
    shutil.copy(tiny_npz.removeprefix("npz:"), home_folder / "tiny.npz")
    tutelage.train("resnet8x0.25", "npz:~/tiny.npz", out="~/run", **TRAIN)
    (home_folder / "net.py").write_text(
        "from tutelage.models.networks.resnet import ResNet\n"
        "def net(num_classes, in_channels):\n    return ResNet(8, num_classes, in_channels, width=0.25)\n"
    )
    weights = "resnet8x0.25@~/run/student.safetensors"
    assert is_trained("~/run")
    assert is_trained(weights)
    assert code_of_network("~/net.py:net").keys() == {"net.py"}
    study = {
        **fields,
        "data": "npz:~/tiny.npz",
        "students": ["resnet8x0.25", "~/net.py:net"],
        "teachers": ["~/run", weights],
    }
    inspect(Study(**study))
    (home_folder / "mine.json").write_text(json.dumps({**study, "students": "resnet8x0.25", "teachers": "~/run"}))
    code, output = run("study", "~/mine.json", "--out=~/study")
    assert code == 0, output
    assert (home_folder / "study" / "report.html").is_file()
    runs = [json.loads(line) for line in (home_folder / "study" / "results.jsonl").read_text().splitlines()]
    assert {(run_record["method"], run_record["status"]) for run_record in runs} == {
        ("plain", "done"),
        ("hinton", "done"),
    }
    (home_folder / "x.yaml").write_text("data: npz:~/tiny.npz\nteacher: ~/run\nepochs: 1\nstudent: resnet8x0.25\n")
    code, output = run("distill", "--config=~/x.yaml", "--out=~/distilled")
    assert code == 0, output
    assert (home_folder / "distilled" / "result.json").is_file()
    for target in ("~/distilled", weights):
        code, output = run("evaluate", target, "--data", "npz:~/tiny.npz")
        assert code == 0, output
    assert not (tmp_path / "~").exists()
