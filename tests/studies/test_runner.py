"""Running of a study: only missing runs are trained; failures, changed code and resume."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tutelage.errors import TutelageWarning
from tutelage.studies.jobs import Status
from tutelage.studies.results import Results
from tutelage.studies.runner import run_study
from tutelage.studies.study import Study
from tutelage.studies.workers import InlineWorkers, LocalWorkers

Refused = Callable[..., AbstractContextManager[None]]
Tiny = Callable[..., Study]

BROKEN = """
from torch import nn
from tutelage.models.networks.resnet import ResNet

class Broken(nn.Module):
    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.body = ResNet(8, num_classes, in_channels, width=0.25)

    def forward(self, x):
        if self.training:
            {}
        return self.body(x)
"""


@pytest.fixture
def tiny(tiny_npz: str) -> Tiny:
    """A study of runs of a second."""

    def make(**fields: Any) -> Study:
        train = {"epochs": 6, "batch_size": 8, "lr": 0.1, "device": "cpu", **fields.pop("train", {})}
        study_fields = {"data": tiny_npz, "students": "resnet8x0.25", "teachers": "resnet8x0.25", "seeds": 2}
        return Study(**{**study_fields, "methods": "hinton", "train": train, **fields})

    return make


def run(study: Study, out: Path, watch: Callable[[Status], None] | None = None) -> Results:
    return run_study(study, out, workers=InlineWorkers(), watch=watch)


def file_times(out: Path) -> dict[str, float]:
    """When each run was finished."""
    return {file.parent.name: file.stat().st_mtime_ns for file in (out / "runs").glob("*/result.json")}


def test_only_missing_runs_are_trained(tiny: Tiny, tmp_path: Path) -> None:
    statuses: list[Status] = []
    first = run(tiny(noise=[0, 0.4]), tmp_path, statuses.append)
    assert len(first.runs) == 2 * 3 * 2
    assert {record["status"] for record in first.runs} == {"done"}
    assert statuses[-1] == Status(runs=12, done=12, failed=0, skipped=0, running=())
    assert all(0 <= status.share <= 1 for status in statuses)
    before = file_times(tmp_path)

    second_results = run(tiny(noise=[0, 0.4]), tmp_path, statuses.append)
    assert second_results.runs == first.runs
    assert file_times(tmp_path) == before
    assert statuses[-1].skipped == 12

    third_results = run(tiny(noise=[0, 0.4], methods="hinton,dml", seeds=3), tmp_path, statuses.append)
    assert before.items() <= file_times(tmp_path).items()
    assert statuses[-1].runs - statuses[-1].skipped == 2 * 2 + 2 * 4  # dml of two seeds, and all of the third
    old = {(record["noise"], record["method"], record["seed"]): record for record in first.runs}
    new = {(record["noise"], record["method"], record["seed"]): record for record in third_results.runs}
    assert all(new[run_key] == record for run_key, record in old.items())


def test_record_has_the_metrics_of_its_run(tiny: Tiny, tmp_path: Path) -> None:
    results = run(tiny(noise=0.4, seeds=1), tmp_path)
    for record in results.runs:
        folder = tmp_path / record["folder"]
        result = json.loads((folder / "result.json").read_text())
        assert record["accuracy"] == result["test"]["accuracy"]
        assert record["memorised"] == result["train"]["memorised"]
        assert record["noise_rate"] == result["data"]["record"][0]["realised_rate"]
        assert record["trained_noise_rate"] == result["data"]["noise_rate"]["train"]
        assert record["forward_passes"] == sum(result["forward_passes"].values()) > 0
        assert record["curve"]["epoch"] == [1, 2, 3, 4, 5, 6]
        assert all(len(values) == 6 for values in record["curve"]["loss"].values())
    assert [record["method"] for record in results.runs] == ["teacher", "plain", "hinton"]
    teacher, plain, hinton = results.runs
    assert hinton["teacher_accuracy"] == plain["teacher_accuracy"] == teacher["accuracy"]
    assert teacher["agreement"] is None
    assert hinton["agreement"] is not None
    frame = pytest.importorskip("pandas").read_json(tmp_path / "results.jsonl", lines=True)
    assert list(frame["method"]) == ["teacher", "plain", "hinton"]


def test_metrics_equal_those_of_a_single_run(tiny: Tiny, tmp_path: Path) -> None:
    from tutelage.config import Config, read_config
    from tutelage.runs import execute

    (hinton,) = [r for r in run(tiny(noise=0.4, seeds=1), tmp_path / "study").runs if r["method"] == "hinton"]
    config = Config(**read_config(tmp_path / "study" / hinton["folder"] / "config.yaml"))
    assert execute(config, tmp_path / "alone").metrics["test"]["nll"] == hinton["nll"]


def test_extra_evaluation_is_added_without_training(tiny: Tiny, tmp_path: Path) -> None:
    run(tiny(seeds=1), tmp_path)
    before = file_times(tmp_path)
    results = run(tiny(seeds=1, evaluate={"pgd": [0.01, 0.1]}), tmp_path)
    assert file_times(tmp_path) == before
    for record in results.runs:
        assert list(record["pgd"]) == ["0.01", "0.1"]
        assert record["accuracy"] >= record["pgd"]["0.01"] >= record["pgd"]["0.1"]


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


def test_student_without_teacher_is_trained_once_and_compared_with_each(tiny: Tiny, tmp_path: Path) -> None:
    study = tiny(teachers="resnet8x0.25,resnet8x0.5", teacher_labels="noisy,clean", noise=0.4, methods="hinton,dml")
    results = run(study.replace(seeds=1), tmp_path)
    folders = [folder.name.partition("-")[0] for folder in (tmp_path / "runs").iterdir()]
    assert {name: folders.count(name) for name in folders} == {"teacher": 4, "plain": 1, "dml": 1, "hinton": 4}
    by_place = {(r["teacher_labels"], r["teacher"], r["method"]): r for r in results.runs}
    assert len(by_place) == len(results.runs) == 16
    for (labels, teacher, method), record in by_place.items():
        if method != "teacher":
            assert record["teacher_accuracy"] == by_place[labels, teacher, "teacher"]["accuracy"]
    plain = [record for (_, _, method), record in by_place.items() if method == "plain"]
    assert len({record["key"] for record in plain}) == len({record["nll"] for record in plain}) == 1
    assert len({record["kl_to_teacher"] for record in plain}) == 4
    assert all(record["command"].startswith("tutelage train") for record in plain)


def test_new_teacher_is_compared_with_trained_students(tiny: Tiny, tmp_path: Path) -> None:
    run(tiny(seeds=1), tmp_path)
    before = file_times(tmp_path)
    results = run(tiny(seeds=1, teachers="resnet8x0.25,resnet8x0.5"), tmp_path)
    assert before.items() <= file_times(tmp_path).items()
    assert len(file_times(tmp_path)) == len(before) + 2  # the teacher, and hinton
    assert all(r["agreement"] is not None for r in results.runs if r["method"] != "teacher")


OWN_METHOD = """
from tutelage.methods import method
from tutelage.terms import CrossEntropy
from tutelage.training.learner import Learner
from own_part import FACTOR

@method(paper="none", family="baseline")
def own(run):
    "Trained in two fits; the second reads the teacher where TAUGHT."
    student = run.student()
    run.fit(Learner(student, None, {"ce": FACTOR * CrossEntropy()}), epochs=1)
    if TAUGHT:
        run.fit(Learner(student, run.frozen(run.teacher()), {"ce": CrossEntropy()}), epochs=1)
    return student
"""


@pytest.fixture
def own_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Write a method of somebody's own, of two files, as an installed package's."""
    import importlib
    from importlib.metadata import EntryPoint

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("tutelage.methods._entry_points", lambda: {"own": EntryPoint("own", "own_method:own", "group")})

    def write(factor: float = 1.0, with_training: bool = False) -> None:
        (tmp_path / "own_method.py").write_text(OWN_METHOD.replace("TAUGHT", str(with_training)))
        (tmp_path / "own_part.py").write_text(f"FACTOR = {factor}")
        importlib.invalidate_caches()
        for name in ("own_method", "own_part"):
            sys.modules.pop(name, None)

    return write


def test_only_runs_of_a_changed_method_are_repeated(
    tiny: Tiny, tmp_path: Path, own_method: Callable[..., None]
) -> None:
    study, out = tiny(methods="hinton,own", seeds=1, train={"epochs": 1}), tmp_path / "out"
    own_method()
    first = {record["method"]: record for record in run(study, out).runs}
    assert set(first["own"]["code"]) == {"own_method.py", "own_part.py"}
    assert first["hinton"]["code"] == first["plain"]["code"] == {}
    own_method()
    second_records = {record["method"]: record for record in run(study, out).runs}
    assert second_records == first
    own_method(factor=0.5)
    with pytest.warns(TutelageWarning, match=r"^own_part.py changed .* 1 run is trained again: own$"):
        changed_records = {record["method"]: record for record in run(study, out).runs}
    assert changed_records["own"]["nll"] != first["own"]["nll"]
    assert {**changed_records, "own": None} == {**first, "own": None}


def test_runs_of_a_method_file_are_repeated_if_it_changed(
    tiny: Tiny, tmp_path: Path, own_method: Callable[..., None]
) -> None:
    study = tiny(methods=f"{tmp_path / 'own_method.py'}:own", seeds=1, train={"epochs": 1})
    own_method()
    first = {record["method"]: record for record in run(study, tmp_path / "out").runs}
    own_method(with_training=True)
    with pytest.warns(TutelageWarning, match=r"^own_method.py changed .* 1 run is trained again: own$"):
        changed_records = {record["method"]: record for record in run(study, tmp_path / "out").runs}
    assert changed_records["own"]["key"] != first["own"]["key"]
    assert changed_records["plain"] == first["plain"]


def test_changed_network_and_its_students_are_trained_again(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "changing_net.py"
    study = tiny(teachers="changing_net:Broken", seeds=1, train={"epochs": 1})
    file.write_text(BROKEN.format("pass"))
    first = {record["method"]: record for record in run(study, tmp_path / "out").runs}
    file.write_text(BROKEN.format("pass").replace("width=0.25", "width=0.5"))
    monkeypatch.delitem(sys.modules, "changing_net")
    with pytest.warns(TutelageWarning, match=r"^changing_net.py changed .* 2 runs are trained again: teacher, hinton$"):
        changed_records = {record["method"]: record for record in run(study, tmp_path / "out").runs}
    assert {name for name, record in changed_records.items() if record["key"] != first[name]["key"]} == {
        "teacher",
        "hinton",
    }
    assert changed_records["plain"]["teacher_accuracy"] == changed_records["teacher"]["accuracy"]
    monkeypatch.delitem(sys.modules, "changing_net")


def test_key_includes_teacher_that_is_read_late(tiny: Tiny, tmp_path: Path, own_method: Callable[..., None]) -> None:
    own_method(with_training=True)
    results = run(tiny(methods="own", seeds=1, teachers="resnet8x0.25,resnet8x0.5"), tmp_path / "out")
    assert len({record["key"] for record in results.runs if record["method"] == "own"}) == 2


def test_warnings_of_runs_reach_the_caller(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(TutelageWarning, match="seed0-.*: the teacher .* chance level"):
        run(tiny(train={"epochs": 1, "lr": 1e-9}, seeds=1), tmp_path)


def test_folder_is_locked_by_a_running_study(tiny: Tiny, tmp_path: Path, refused: Refused) -> None:
    from filelock import FileLock

    with FileLock(tmp_path / ".lock"), refused("another study is using"):
        run(tiny(), tmp_path)


def test_unknown_tracker_is_refused_before_training(tiny: Tiny, tmp_path: Path, refused: Refused) -> None:
    with refused("tensorbord", "tensorboard"):
        run_study(tiny(), tmp_path, workers=InlineWorkers(), track="tensorbord")
    assert not (tmp_path / "runs").exists()


def test_tracker_records_every_run(tiny: Tiny, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    results = run_study(tiny(seeds=1), tmp_path, workers=InlineWorkers(), track="tensorboard")
    for record in results.runs:
        assert [*(tmp_path / record["folder"] / "tracking" / "tensorboard").rglob("events.*")]


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


# --- real processes, stopped and killed


def start(out: Path, tiny_npz: str) -> subprocess.Popen[bytes]:
    words = ["study", "nine", "--data", tiny_npz, "--students", "resnet8x0.25", "--teachers", "resnet8x0.25"]
    words += ["--noise", "0.4", "--methods", "hinton,dml", "--seeds", "1", "--set", "epochs=50"]
    words += ["--set", "batch_size=8", "--set", "device=cpu", "--out", str(out)]
    return subprocess.Popen(
        [sys.executable, "-m", "tutelage", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        # A shell that starts a job in the background makes it deaf to Ctrl-C; a person's does not.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()[1].decode()[-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.timeout(280)
def test_stopped_and_killed_study_resumes_exactly(tiny_npz: str, tmp_path: Path) -> None:
    reference_process = start(tmp_path / "whole", tiny_npz)
    _, output = reference_process.communicate(timeout=200)
    assert reference_process.returncode == 0, output.decode()[-2000:]

    out = tmp_path / "out"

    def at_work(start_time: float) -> bool:
        """Whether a run that is not finished has written down an epoch since."""
        files = [file for file in out.glob("runs/*/metrics.jsonl") if not (file.parent / "result.json").exists()]
        return any(file.stat().st_mtime >= start_time and file.stat().st_size for file in files)

    for signal_number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)):
        start_time = time.time()
        process = start(out, tiny_npz)
        wait_for(lambda start_time=start_time: at_work(start_time), process)
        process.send_signal(signal_number)
        process.communicate(timeout=60)
        assert process.returncode == code
        deadline = time.monotonic() + 30
        while is_alive(process.pid):  # no worker is left behind, not even by SIGKILL
            assert time.monotonic() < deadline
            time.sleep(0.05)
    last = start(out, tiny_npz)
    standard_output, output = last.communicate(timeout=200)
    assert last.returncode == 0, output.decode()[-2000:]
    assert b"| hinton |" in standard_output
    assert (out / "report.html").exists()

    def numbers(folder: Path) -> list[dict[str, Any]]:
        lines = (folder / "results.jsonl").read_text().splitlines()
        timed = ("seconds", "latency_ms", "command")  # the command names the folder of the teacher
        return [{key: value for key, value in json.loads(line).items() if key not in timed} for line in lines]

    assert numbers(out) == numbers(tmp_path / "whole")
