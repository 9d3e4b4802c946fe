"""Experiment trackers get what the run writes, and their failures do not affect it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tutelage
from tutelage.config import Config
from tutelage.data import Data
from tutelage.errors import TutelageWarning
from tutelage.models.tapped import Tapped
from tutelage.runs import execute

Net = Callable[..., Tapped]


class Notes:
    """A tracker that keeps what it is told, and fails where it is asked to."""

    requires_logging_directory = False
    fails_at: str | None = None
    calls: list[tuple[Any, ...]]

    def __init__(self, run_name: str) -> None:
        self._note("made", run_name)

    def start(self) -> None:
        self._note("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._note("configuration", values)

    def log(self, values: dict[str, Any], step: int) -> None:
        self._note(f"log {step}", values)

    def finish(self) -> None:
        self._note("finish")

    def _note(self, event: str, *values: Any) -> None:
        if event == self.fails_at:
            raise ConnectionError(f"nobody answers to {event}")
        self.calls.append((event, *values))


@pytest.fixture
def tracker_class(monkeypatch: pytest.MonkeyPatch) -> type[Notes]:
    """A tracker by the name of ``notes``."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    kind = type("Fresh", (Notes,), {"calls": []})
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "notes", kind)
    return kind


@pytest.fixture
def config(tiny_npz: str) -> Config:
    return Config(data=tiny_npz, student="resnet8x0.25", epochs=2, batch_size=16, lr=0.1, device="cpu", workers=0)


def without_clock(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if name not in ("seconds", "cost")}


# --- what is reported


def test_a_tracker_gets_configuration_epochs_and_test_metrics(config: Config, tracker_class: type[Notes]) -> None:
    result = execute(config, track="notes")
    order = ["made", "start", "configuration", "log 1", "log 2", "log 2", "finish"]
    assert [event for event, *_ in tracker_class.calls] == order
    calls = tracker_class.calls
    assert calls[0][1] == "tutelage"
    values = calls[2][1]
    assert (values["lr"], values["clip"], values["milestones"]) == (0.1, None, "0.3, 0.6, 0.8")
    assert all(isinstance(value, str | int | float | None) for value in values.values())
    for (_, metrics), record in zip(calls[3:5], result.history, strict=True):
        student = {f"fit0/student/{name}": value for name, value in record["learners"]["student"].items()}
        assert {"fit0/student/ce", "fit0/student/train_accuracy", "fit0/student/validation_accuracy"} <= set(student)
        assert metrics == {"fit0/lr": record["lr"], **student}
    test = result.metrics["test"]
    assert calls[5][1]["test/accuracy"] == test["accuracy"]
    assert "test/per_class_accuracy" not in calls[5][1]


def test_steps_continue_over_the_fits_of_a_run(config: Config, tracker_class: type[Notes], tmp_path: Path) -> None:
    execute(config, tmp_path / "teacher")
    execute(config.replace(teacher=str(tmp_path / "teacher"), method="fitnet", epochs=4), track="notes")
    kinds = [
        (event, {name.split("/")[0] for name in event_values[0]})
        for event, *event_values in tracker_class.calls
        if event[:3] == "log"
    ]
    assert kinds == [
        ("log 1", {"fit0"}),
        *[(f"log {step}", {"fit1"}) for step in (2, 3, 4)],
        ("log 4", {"test"}),
    ]
    values = next(event_values[0] for event, *event_values in tracker_class.calls if event == "configuration")
    assert any(name.startswith("settings.") for name in values)


def test_train_and_distill_accept_trackers(
    tiny_data: Data, tiny_model: Net, trained_model: Net, tracker_class: type[Notes]
) -> None:
    tutelage.train(tiny_model(), tiny_data, epochs=1, device="cpu", track="notes")
    tutelage.distill(trained_model(), tiny_model(), tiny_data, epochs=1, device="cpu", track=" notes ")
    assert [event for event, *_ in tracker_class.calls].count("finish") == 2


def test_a_resumed_run_reports_its_earlier_epochs_again(
    config: Config, tracker_class: type[Notes], tmp_path: Path
) -> None:
    def stop(record: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(config, tmp_path / "run", report=stop, track="notes")
    assert [event for event, *_ in tracker_class.calls[-2:]] == ["log 1", "finish"]
    first = tracker_class.calls[-2]
    tracker_class.calls.clear()
    execute(config, tmp_path / "run", track="notes")
    assert tracker_class.calls[3] == first
    assert [event for event, *_ in tracker_class.calls[3:]] == ["log 1", "log 2", "log 2", "finish"]
    tracker_class.calls.clear()
    execute(config, tmp_path / "run", track="notes")  # finished: nothing is trained, and nobody told
    assert tracker_class.calls == []


def test_trackers_do_not_change_the_identity_of_a_run(
    config: Config, tracker_class: type[Notes], tmp_path: Path
) -> None:
    plain_result, tracked_result = execute(config, tmp_path / "a"), execute(config, tmp_path / "b", track="notes")
    assert without_clock(tracked_result.metrics) == without_clock(plain_result.metrics)
    for name in ("student.safetensors", "config.yaml", "inputs.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert "--track" not in tracked_result.metrics["command"]


# --- failures


@pytest.mark.parametrize("at", ["made", "start", "configuration", "log 1", "log 2", "finish"])
def test_a_tracker_that_fails_is_left_out_with_one_warning(
    at: str, config: Config, tracker_class: type[Notes], monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    other = type("Other", (Notes,), {"calls": []})
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "other", other)
    tracker_class.fails_at = at
    with pytest.warns(TutelageWarning) as records:
        result = execute(config, track="notes,other")
    (warning,) = records
    assert str(warning.message) == f"tracker 'notes' failed (nobody answers to {at}); the run continues without it"
    assert result.metrics["test"]
    assert other.calls[-1] == ("finish",)


def test_unknown_and_uninstalled_trackers_are_refused_first(
    config: Config, tmp_path: Path, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    output_folder = tmp_path / "run"
    with refused("unknown tracker 'tensorbord'", "did you mean 'tensorboard'", "mlflow", "wandb"):
        execute(config, output_folder, track="tensorbord")
    with refused("unknown tracker ''"):
        execute(config, output_folder, track="")
    monkeypatch.setattr("accelerate.tracking._available_trackers", [])
    with refused("'wandb'", "pip install wandb"):
        execute(config, output_folder, track="wandb")
    assert not output_folder.exists()


# --- TensorBoard itself


@pytest.fixture
def scalars() -> Callable[[Path], dict[str, list[tuple[int, float]]]]:
    """``scalars(folder)``: (step, value) of every curve in the folder of a run."""
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")

    def read_events(folder: Path) -> dict[str, list[tuple[int, float]]]:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(folder / "tracking" / "tensorboard" / "tutelage")).Reload()
        return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}

    return read_events


def test_tensorboard_reads_the_metrics_also_after_a_stop(config: Config, tmp_path: Path, scalars: Any) -> None:
    output_folder = tmp_path / "run"

    def stop(record: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(config, output_folder, report=stop, track="tensorboard")
    assert [step for step, _ in scalars(output_folder)["fit0/lr"]] == [1]
    result = execute(config, output_folder, track="tensorboard")
    curves = scalars(output_folder)
    for name in ("ce", "train_accuracy", "validation_accuracy"):
        expected = [(record["epoch"], record["learners"]["student"][name]) for record in result.history]
        assert [step for step, _ in curves[f"fit0/student/{name}"]] == [1, 2]  # each once
        assert [v for _, v in curves[f"fit0/student/{name}"]] == pytest.approx([v for _, v in expected], rel=1e-6)
    assert curves["test/accuracy"] == [(2, pytest.approx(result.metrics["test"]["accuracy"], rel=1e-6))]
    (stored_file,) = output_folder.glob("tracking/tensorboard/tutelage/*/hparams.yml")
    assert "resnet8x0.25" in stored_file.read_text()
    assert execute(config, output_folder).metrics == result.metrics  # and the folder is still this run's


def test_a_folder_of_a_run_that_never_trained_may_contain_tracking_files(
    config: Config, tmp_path: Path, scalars: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the tracker's start and the first checkpoint."""
    output_folder = tmp_path / "run"
    with monkeypatch.context() as context:
        context.setattr("tutelage.training.run.fit", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            execute(config, output_folder, track="tensorboard")
    assert (output_folder / "tracking").is_dir()
    execute(config, output_folder)
    assert json.loads((output_folder / "result.json").read_text())["test"]


def test_trackers_that_write_files_need_a_folder(config: Config, scalars: Any, refused: Any) -> None:
    with refused("'tensorboard' writes files", "out="):
        execute(config, track="tensorboard")


def test_the_command_line_has_the_option(
    config: Config, tmp_path: Path, scalars: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tutelage.cli import main

    words = ["train", "--data", config.data, "--model", "resnet8x0.25", "--epochs", "1", "--device", "cpu", "--json"]
    monkeypatch.setattr("sys.argv", ["tutelage", *words, "--out", str(tmp_path / "run"), "--track", "tensorboard"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    assert "--track" not in json.loads(capsys.readouterr().out)["command"]
    assert "test/accuracy" in scalars(tmp_path / "run")
    monkeypatch.setattr("sys.argv", ["tutelage", *words, "--out", str(tmp_path / "run"), "--track", "nobody"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "error: unknown tracker 'nobody'" in capsys.readouterr().err
