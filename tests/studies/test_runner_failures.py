"""Failed runs of a study are recorded, retried and reported; unsuitable networks are refused."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from tests.studies.running import BROKEN, Refused, Tiny, run
from tutelage.errors import TutelageWarning
from tutelage.studies.results import Results
from tutelage.studies.runner import run_study
from tutelage.studies.workers import InlineWorkers, LocalWorkers


def test_failed_run_is_recorded_with_its_error(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_net.py").write_text(BROKEN.format('raise RuntimeError("no luck today\\nnor tomorrow")'))
    monkeypatch.syspath_prepend(tmp_path)
    out = tmp_path / "out"
    with pytest.warns(TutelageWarning, match="2 of 3 runs of the study failed; their errors are in .*failures"):
        results = run(tiny(students="broken_net:Broken", seeds=1), out)
    status = {record["method"]: (record["status"], record["error"]) for record in results.runs}
    assert status["teacher"] == ("done", None)
    for row in ("plain", "hinton"):
        assert status[row][0] == "failed"
        assert "no luck today" in status[row][1]
    assert all(row.mean is None for row in results.table() if row.cell.method != "teacher")
    (failure_file,) = (out / "failures").glob("plain-*.json")
    attempts = json.loads(failure_file.read_text())["attempts"]
    assert len(attempts) == 2  # tried once more
    assert "RuntimeError" in attempts[0]["traceback"]

    (tmp_path / "broken_net.py").write_text(BROKEN.format("pass"))  # mended, it is run as what is missing
    monkeypatch.delitem(sys.modules, "broken_net")
    assert {record["status"] for record in run(tiny(students="broken_net:Broken", seeds=1), out).runs} == {"done"}
    assert not any((out / "failures").iterdir())


def test_student_of_failed_teacher_fails_and_names_it(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_teacher.py").write_text(BROKEN.format('raise RuntimeError("no luck")'))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.warns(TutelageWarning, match="2 of 3 runs"):
        results = run(tiny(teachers="broken_teacher:Broken", seeds=1), tmp_path / "out")
    errors = {record["method"]: record["error"] for record in results.runs}
    assert "no luck" in errors["teacher"]
    assert re.fullmatch(r"teacher-seed0-\w+, which it needs, failed", errors["hinton"])
    (plain,) = [record for record in results.runs if record["method"] == "plain"]
    assert (plain["status"], plain["teacher_accuracy"]) == ("done", None)


def test_study_raises_if_all_runs_failed(
    tiny: Tiny, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hopeless_net.py").write_text(BROKEN.format('raise RuntimeError("no luck")'))
    monkeypatch.syspath_prepend(tmp_path)
    out = tmp_path / "out"
    with refused("all 3 runs of the study failed", str(out / "failures")):
        run(tiny(teachers="hopeless_net:Broken", students="hopeless_net:Broken", seeds=1), out)
    assert {record["status"] for record in Results.read(out).runs} == {"failed"}


def failing_study(tiny_npz: str, teacher: str) -> list[str]:
    words = ["study", "nine", "--data", tiny_npz, "--noise", "0", "--methods", "hinton", "--seeds", "1", "--workers"]
    return [*words, "1", "--students", "hapless_net:Broken", "--teachers", teacher, "--set", "epochs=1"]


@pytest.mark.parametrize(("teacher", "count"), [("resnet8x0.25", "2 of 3"), ("hapless_net:Broken", "all 3")])
def test_command_exits_with_1_after_failures_and_writes_the_report(
    teacher: str,
    count: str,
    tiny_npz: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from tutelage.cli import main

    (tmp_path / "hapless_net.py").write_text(BROKEN.format('raise RuntimeError("no luck")'))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tutelage.studies.workers.LocalWorkers", lambda count: InlineWorkers())
    monkeypatch.setattr("sys.argv", ["tutelage", *failing_study(tiny_npz, teacher), "--out", "out"])
    with pytest.raises(SystemExit) as stop:
        main()
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 1
    assert [line for line in lines if line.startswith("error: ")] == [
        f"error: {count} runs of the study failed; their errors are in out/failures, and the same study tries them "
        "again"
    ]
    assert "missing" in Path("out/report.html").read_text(encoding="utf-8")
    monkeypatch.delitem(sys.modules, "hapless_net")


def test_killed_worker_costs_one_attempt(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code_that_dies_once = f"import os, pathlib; mark = pathlib.Path({str(tmp_path / 'mark')!r}); "
    code_that_dies_once += "mark.exists() or (mark.touch(), os.kill(os.getpid(), 9))"
    (tmp_path / "killed_net.py").write_text(BROKEN.format(code_that_dies_once))
    monkeypatch.syspath_prepend(tmp_path)
    study = tiny(students="killed_net:Broken", seeds=1)
    results = run_study(study, tmp_path / "out", workers=LocalWorkers(1))
    assert (tmp_path / "mark").exists()
    assert {record["status"] for record in results.runs} == {"done"}


def test_run_that_ended_its_process_is_retried_alone(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fatal_net.py").write_text(BROKEN.format("import os; os.kill(os.getpid(), 9)"))
    monkeypatch.syspath_prepend(tmp_path)
    study = tiny(students="resnet8x0.25,fatal_net:Broken", seeds=1)
    with pytest.warns(TutelageWarning, match="2 of 5 runs of the study failed"):
        results = run_study(study, tmp_path / "out", workers=LocalWorkers(1))
    status_of = {(record["student"], record["method"]): record["status"] for record in results.runs}
    for (student, method), status in status_of.items():
        assert status == ("failed" if student.startswith("fatal") and method != "teacher" else "done")


def test_unknown_tracker_is_refused_before_training(tiny: Tiny, tmp_path: Path, refused: Refused) -> None:
    with refused("tensorbord", "tensorboard"):
        run_study(tiny(), tmp_path, workers=InlineWorkers(), track="tensorbord")
    assert not (tmp_path / "runs").exists()


COLOUR = """
from torch import nn

class Colour(nn.Sequential):
    def __init__(self, num_classes):
        pool = nn.AdaptiveAvgPool2d(1)
        super().__init__(nn.Conv2d(CHANNELS, 8, 3), nn.ReLU(), pool, nn.Flatten(), nn.Linear(8, num_classes))
"""


@pytest.mark.parametrize("role", ["students", "teachers"])
def test_network_for_other_images_is_refused_before_training(
    role: str, tiny: Tiny, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "colour_net.py").write_text(COLOUR.replace("CHANNELS", "3"))
    monkeypatch.syspath_prepend(tmp_path)
    with refused("cannot train colour_net:Colour", "images of shape (1, 8, 8)"):
        run(tiny(**{role: "colour_net:Colour"}), tmp_path / "out")
    assert not (tmp_path / "out" / "runs").exists()
    monkeypatch.delitem(sys.modules, "colour_net")


def test_method_incompatible_with_networks_is_refused_before_training(
    tiny: Tiny, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "flat_net.py").write_text(
        "from torch import nn\n\n"
        "def flat(num_classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with refused("at cannot train flat_net:flat", "has no feature maps"):
        run(tiny(students="flat_net:flat", methods="hinton,at"), tmp_path / "out")
    assert not (tmp_path / "out" / "runs").exists()


def test_refused_study_writes_no_file(tiny: Tiny, tmp_path: Path, refused: Refused) -> None:
    with refused("hintom"):
        run(tiny(methods="hintom"), tmp_path)
    assert not (tmp_path / "study.json").exists()
