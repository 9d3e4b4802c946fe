"""Running of a study: only missing runs are trained, and their records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.studies.running import Refused, Tiny, run
from tutelage.errors import TutelageWarning
from tutelage.report.page import write_page
from tutelage.studies.jobs import Status
from tutelage.studies.results import Results
from tutelage.studies.runner import run_study
from tutelage.studies.workers import InlineWorkers


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


def test_attacks_are_recorded_and_drawn(tiny: Tiny, tmp_path: Path) -> None:
    evaluate = {"attacks": "pgd:0.1:steps=2,square:0.1:queries=3", "samples": 40}
    results = run(tiny(seeds=1, evaluate=evaluate), tmp_path)
    for record in results.runs:
        assert list(record["attacks"]) == ["pgd:0.1:steps=2", "square:0.1:queries=3"]
        assert record["robust_accuracy"] == record["attack_curves"]["linf"]["0.1"] <= min(record["attacks"].values())
    text = write_page(results).read_text()
    assert "Attacked images, worst of all attacks" in text
    assert "distance, maximum norm" in text
    assert "found one (pgd:0.1:steps=2, square:0.1:queries=3), so" in text
    assert "Refused" not in text
    before = file_times(tmp_path)

    for record in (records := [dict(record) for record in results.runs]):  # as an earlier version wrote them
        for name in ("attacks", "robust_accuracy", "attack_curves"):
            del record[name]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert all(record["attacks"] is None for record in Results.read(tmp_path).runs)
    assert run(tiny(seeds=1, evaluate=evaluate), tmp_path).runs == results.runs
    assert file_times(tmp_path) == before


def test_the_page_says_which_attacks_were_refused(tiny: Tiny, tmp_path: Path) -> None:
    """A halftone has no gradient, and the network of the others has one."""
    evaluate = {"attacks": "pgd:0.1:steps=2:bpda=none,square:0.1:queries=3,den:steps=2", "samples": 16}
    results = run(tiny(seeds=1, methods="halftone", evaluate=evaluate), tmp_path)
    refused = {r["method"]: [name for name, share in r["attacks"].items() if share is None] for r in results.runs}
    assert refused == {"teacher": [], "plain": [], "halftone": ["pgd:0.1:steps=2:bpda=none"]}
    text = write_page(results).read_text()
    assert "mislead the attack: pgd:0.1:steps=2:bpda=none of halftone." in text
    assert "square:0.1:queries=3, den:steps=2), so" in text


def test_the_evaluation_of_an_earlier_version_is_not_repeated(tiny: Tiny, tmp_path: Path) -> None:
    """Its declaration has no attacks."""
    run(tiny(seeds=1, evaluate={"pgd": [0.1]}), tmp_path)
    declaration = json.loads((tmp_path / "study.json").read_text())
    del declaration["evaluate"]["attacks"]
    (tmp_path / "study.json").write_text(json.dumps(declaration))
    written = [*tmp_path.glob("runs/*/extra.json")]
    for file in written:
        content = json.loads(file.read_text())
        del content["requested"]["attacks"]
        file.write_text(json.dumps(content))
    before = [file.stat().st_mtime_ns for file in written]
    run(tiny(seeds=1, evaluate={"pgd": [0.1]}), tmp_path)
    assert [file.stat().st_mtime_ns for file in written] == before


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


def test_warnings_of_runs_reach_the_caller(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(TutelageWarning, match="seed0-.*: the teacher .* chance level"):
        run(tiny(train={"epochs": 1, "lr": 1e-9}, seeds=1), tmp_path)


def test_folder_is_locked_by_a_running_study(tiny: Tiny, tmp_path: Path, refused: Refused) -> None:
    from filelock import FileLock

    with FileLock(tmp_path / ".lock"), refused("another study is using"):
        run(tiny(), tmp_path)


def test_tracker_records_every_run(tiny: Tiny, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    results = run_study(tiny(seeds=1), tmp_path, workers=InlineWorkers(), track="tensorboard")
    for record in results.runs:
        assert [*(tmp_path / record["folder"] / "tracking" / "tensorboard").rglob("events.*")]
