"""The folder of a run: its content, the run that it belongs to, and folders that must not be changed."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tutelage.config import Config, read_config
from tutelage.data import Data, open_data
from tutelage.errors import TutelageError
from tutelage.evaluation import evaluate
from tutelage.methods import find, installed
from tutelage.models.load import make_model
from tutelage.models.surgery import reapply
from tutelage.models.tapped import Tapped
from tutelage.models.weights import load_weights, read_metadata
from tutelage.runs import RunFolder, execute
from tutelage.training.checkpoint import read

STUDENT = "resnet8x0.25"
FILES = {
    ".lock",
    "checkpoints",
    "config.yaml",
    "inputs.json",
    "metrics.jsonl",
    "result.json",
    "student.safetensors",
    "versions.json",
}


@pytest.fixture
def config(tiny_npz: str) -> Config:
    return Config(data=tiny_npz, student=STUDENT, epochs=2, batch_size=16, lr=0.1, device="cpu", workers=0)


@pytest.fixture
def teacher(config: Config, tmp_path: Path) -> str:
    """The folder of a finished run that knows its classes."""
    folder = tmp_path / "teacher"
    execute(config.replace(student="resnet8x0.5", epochs=10, lr=0.2), folder)
    return str(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def numbers(folder: Path) -> dict[str, Any]:
    """The result without what a clock says."""
    result = strict(folder / "result.json")
    del result["seconds"], result["cost"]["latency_ms"], result["cost"]["latency_ms_quartiles"]
    return result


def strict(path: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    result: dict[str, Any] = json.loads(path.read_text(), parse_constant=refuse)
    return result


def epochs(folder: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


# --- content


def test_a_finished_run_contains_the_documented_files(config: Config, tmp_path: Path) -> None:
    result = execute(config.replace(noise="0.25"), tmp_path / "run")
    folder = tmp_path / "run"
    assert result.folder == folder
    assert {entry.name for entry in folder.iterdir()} == FILES
    written_config = yaml.safe_load((folder / "config.yaml").read_text())
    assert written_config == yaml.safe_load(result.config.as_yaml())
    assert set(written_config) == set(Config.model_fields)
    assert written_config["device"] == "cpu"
    assert written_config["precision"] in ("float32", "bfloat16")  # decided, and recorded as that
    assert isinstance(written_config["channels_last"], bool)
    assert set(strict(folder / "inputs.json")) == {"training data"}
    versions = strict(folder / "versions.json")
    assert versions["torch"] == torch.__version__
    assert versions["python"] == sys.version.split()[0]
    assert [(record["fit"], record["epoch"], record["epochs"]) for record in epochs(folder)] == [(0, 1, 2), (0, 2, 2)]
    assert [path.name for path in sorted((folder / "checkpoints").iterdir())] == [
        "fit-00-epoch-00001.ckpt",
        "fit-00-epoch-00002.ckpt",
    ]
    metrics = strict(folder / "result.json")
    assert metrics == result.metrics
    assert [record["learners"] for record in epochs(folder)] == [record["learners"] for record in result.history]
    (noise, *_) = metrics["data"]["record"]
    assert noise["condition"] == "SymmetricNoise"
    assert noise["changed"] == metrics["train"]["wrong_labels"]
    assert noise["realised_rate"] == noise["changed"] / 48


def test_settings_are_written_with_their_defaults(config: Config, teacher: str, tmp_path: Path) -> None:
    execute(config.replace(method="hinton", teacher=teacher, settings={"alpha": 0.5}), tmp_path / "run")
    written_config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert written_config["settings"] == {"temperature": 4.0, "alpha": 0.5}
    assert written_config["teacher"] == [teacher]
    assert set(strict(tmp_path / "run" / "inputs.json")) == {"training data", "teacher 1"}


def flat(value: Any) -> list[float]:
    """What is nested in a JSON value, a null as NaN."""
    inside = value.values() if isinstance(value, dict) else value
    if isinstance(value, dict | list):
        return [number for entry in inside for number in flat(entry)]
    return [math.nan if value is None else value]


def test_results_contain_the_last_and_the_selected_epoch(config: Config, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = config.replace(epochs=6, lr=0.3)
    result = execute(config, folder)
    data = open_data(config.data)
    new_model = Tapped(make_model(STUDENT, num_classes=4, input_shape=(1, 8, 8)).module, *data.mean_std)
    load_weights(folder / "student.safetensors", new_model.module)
    for key, value in evaluate(new_model, data).items():
        assert flat(result.metrics["test"][key]) == pytest.approx(flat(value), rel=1e-5, nan_ok=True), key

    (latest,) = (folder / "checkpoints").glob("*-00006.ckpt")
    epoch, accuracy, state = read(latest)["selected"]["student"]
    new_model.module.load_state_dict(state)
    assert result.metrics["selected"] == {
        "epoch": epoch,
        "validation_accuracy": accuracy,
        "test_accuracy": evaluate(new_model, data)["accuracy"],
    }
    shares = [record["learners"]["student"]["validation_accuracy"] for record in epochs(folder)]
    assert (epoch, accuracy) == (shares.index(max(shares)) + 1, max(shares))


def test_no_epoch_is_selected_without_a_validation_split(config: Config, tiny_data: Data, tmp_path: Path) -> None:
    from dataclasses import replace

    from tutelage.api import train

    result = train(STUDENT, replace(tiny_data, validation=None), validation=0, epochs=1, out=tmp_path / "run")
    assert "selected" not in result.metrics
    assert strict(tmp_path / "run" / "result.json")["test"]["samples"] == 16


def test_memorised_labels_and_fidelity(config: Config, teacher: str, tmp_path: Path) -> None:
    config = config.replace(noise="0.4", seed=3, epochs=12)
    result = execute(config.replace(method="hinton", teacher=teacher), tmp_path / "run")
    from tutelage.data.configured import load_data

    data = load_data(config)
    is_wrong = data.train.labels != data.train.clean_labels
    logits = result.model.eval()(data.train.inputs.permute(0, 3, 1, 2) / 255)  # type: ignore[union-attr]
    answers = logits.argmax(1)
    train_metrics = result.metrics["train"]
    assert train_metrics["wrong_labels"] == int(is_wrong.sum()) > 5
    assert train_metrics["memorised"] == pytest.approx((answers == data.train.labels)[is_wrong].float().mean().item())
    assert train_metrics["train_accuracy_clean"] == pytest.approx(
        (answers == data.train.clean_labels).float().mean().item()
    )
    assert train_metrics["train_accuracy_given"] == pytest.approx((answers == data.train.labels).float().mean().item())
    assert set(result.metrics["teacher"]) == set(train_metrics)
    from tutelage.runs import open_model

    with torch.no_grad():
        pixels = data.test.inputs.permute(0, 3, 1, 2) / 255  # type: ignore[union-attr]
        teacher_logits, student_logits = open_model(teacher, data).eval()(pixels), result.model.eval()(pixels)
    test = result.metrics["test"]
    assert test["agreement"] == pytest.approx(
        (teacher_logits.argmax(1) == student_logits.argmax(1)).float().mean().item()
    )
    divergence = (
        (teacher_logits.softmax(1) * (teacher_logits.log_softmax(1) - student_logits.log_softmax(1))).sum(1).mean()
    )
    assert test["kl_to_teacher"] == pytest.approx(divergence.item(), rel=1e-4)
    assert test["teacher_accuracy"] == pytest.approx(
        (teacher_logits.argmax(1) == data.test.labels).float().mean().item()
    )


@pytest.mark.parametrize("method", [name for name in installed() if find(name).task in (None, "classification")])
def test_the_students_file_contains_only_the_student(method: str, config: Config, teacher: str, tmp_path: Path) -> None:
    execute(config.replace(method=method, teacher=teacher), tmp_path / "run")
    file = tmp_path / "run" / "student.safetensors"
    bare_network = make_model(STUDENT, num_classes=4, input_shape=(1, 8, 8)).module
    if operations := read_metadata(file)["surgery"]:  # what the file says was done to the network
        bare_network = reapply(bare_network, operations, torch.zeros(2, 1, 8, 8))
    assert {name: value.shape for name, value in load_file(file).items()} == {
        name: value.shape for name, value in bare_network.state_dict().items()
    }
    bare_network.load_state_dict(load_file(file))  # as anybody would, without this library


@pytest.mark.parametrize("method", ["plain", "hinton", "dml", "fitnet"])
def test_the_written_configuration_makes_the_same_run(
    method: str, config: Config, teacher: str, tmp_path: Path
) -> None:
    teachers = (teacher, teacher) if method == "hinton" else teacher if method == "fitnet" else ()
    config = config.replace(method=method, teacher=teachers, noise="0.2", seed=7, epochs=3)
    execute(config, tmp_path / "first")
    torch.rand(3)
    second_config = Config(**read_config(tmp_path / "first" / "config.yaml"))
    execute(second_config, tmp_path / "second")
    first, second = (tmp_path / name for name in ("first", "second"))
    assert (first / "student.safetensors").read_bytes() == (second / "student.safetensors").read_bytes()
    assert numbers(first) == numbers(second)
    assert epochs(first) == epochs(second)
    assert (first / "config.yaml").read_bytes() == (second / "config.yaml").read_bytes()
    assert (first / "inputs.json").read_bytes() == (second / "inputs.json").read_bytes()


def test_without_a_folder_the_numbers_are_the_same(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state_of: Any, changed: Any
) -> None:
    folder_result = execute(config, tmp_path / "run")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    folderless_result = execute(config)
    assert folderless_result.folder is None
    assert changed(state_of(folder_result.model), state_of(folderless_result.model)) == set()
    assert folderless_result.metrics["test"] == folder_result.metrics["test"]
    assert list(Path.cwd().iterdir()) == []


def test_training_does_not_read_the_test_split(config: Config, tiny_data: Data, tmp_path: Path) -> None:
    import numpy as np

    with np.load(tmp_path / "tiny.npz") as arrays:
        other = dict(arrays) | {"test_images": 255 - arrays["test_images"], "test_labels": arrays["test_labels"] * 0}
    np.savez(tmp_path / "other.npz", **other)
    execute(config, tmp_path / "one")
    execute(config.replace(data=f"npz:{tmp_path / 'other.npz'}"), tmp_path / "two")
    first_folder, second_folder = (tmp_path / name for name in ("one", "two"))
    assert (first_folder / "student.safetensors").read_bytes() == (second_folder / "student.safetensors").read_bytes()
    assert epochs(first_folder) == epochs(second_folder)
    assert numbers(first_folder)["test"] != numbers(second_folder)["test"]


# --- which run it belongs to


def test_a_finished_run_is_read_back_without_training(config: Config, tmp_path: Path, state_of: Any) -> None:
    folder = tmp_path / "run"
    first = execute(config, folder)
    before = contents(folder)
    reports: list[Any] = []
    second_result = execute(config, folder, report=reports.append)
    assert reports == []
    assert contents(folder) == before
    assert second_result.metrics == first.metrics
    for name, value in state_of(first.model).items():
        assert torch.equal(value, state_of(second_result.model)[name]), name


def test_a_finished_run_without_its_weights_names_the_remedy(
    config: Config, tmp_path: Path, refused: Callable[..., Any]
) -> None:
    execute(config, tmp_path / "run")
    student = tmp_path / "run" / "student.safetensors"
    content = student.read_bytes()
    student.write_bytes(content[:-10])
    with refused("student.safetensors", "remove", "result.json", "finish the run from its checkpoint"):
        execute(config, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    execute(config, tmp_path / "run")
    assert student.read_bytes() == content


@pytest.mark.parametrize(
    ("change", "pieces"),
    [
        ({"lr": 0.2}, ("lr: 0.1 there, 0.2 here",)),
        ({"seed": 1}, ("seed: 0 there, 1 here",)),
        ({"method": "dml"}, ("method: 'plain' there, 'dml' here", "settings")),
        (
            {"lr": 0.2, "seed": 1, "epochs": 3, "momentum": 0.5, "noise": "0.1"},
            ("epochs: 2 there, 3 here", "and 3 more"),  # the labels differ too
        ),
    ],
)
def test_the_folder_of_another_run_is_not_changed(
    change: dict[str, Any], pieces: tuple[str, ...], config: Config, tmp_path: Path, refused: Callable[..., Any]
) -> None:
    folder = tmp_path / "run"
    execute(config, folder)
    before = contents(folder)
    with refused(str(folder), "different run", "choose another folder", *pieces):
        execute(config.replace(**change), folder)
    assert contents(folder) == before


def test_a_teacher_at_another_path_is_the_same_teacher(config: Config, teacher: str, tmp_path: Path) -> None:
    config = config.replace(method="hinton", teacher=teacher)
    expected_metrics = execute(config, tmp_path / "run").metrics["test"]
    (tmp_path / "run" / "result.json").unlink()
    Path(teacher).rename(tmp_path / "moved")
    assert (
        execute(config.replace(teacher=str(tmp_path / "moved")), tmp_path / "run").metrics["test"] == expected_metrics
    )


def test_the_same_names_with_another_content_are_another_run(
    config: Config, teacher: str, tmp_path: Path, refused: Callable[..., Any]
) -> None:
    """A teacher that was trained anew, data that was changed."""
    import shutil

    import numpy as np

    folder = tmp_path / "run"
    config = config.replace(method="hinton", teacher=teacher)
    execute(config, folder)
    other = tmp_path / "other"
    execute(config.replace(method="plain", teacher=(), student="resnet8x0.5", epochs=10, lr=0.2, seed=1), other)
    content = Path(teacher, "student.safetensors").read_bytes()
    result = Path(teacher, "result.json").read_bytes()
    for name in ("student.safetensors", "result.json"):
        shutil.copy(other / name, Path(teacher, name))
    with refused("different run", "teacher 1: "):
        execute(config, folder)
    Path(teacher, "student.safetensors").write_bytes(content)
    Path(teacher, "result.json").write_bytes(result)
    execute(config, folder)
    with np.load(tmp_path / "tiny.npz") as arrays:
        other_arrays = dict(arrays)
    other_arrays["train_images"][0, 0, 0] ^= 1
    np.savez(tmp_path / "tiny.npz", **other_arrays)
    with refused("different run", "training data: "):
        execute(config, folder)


@pytest.mark.parametrize("name", ["thesis.tex", "result.json", "inputs.json", "checkpoints", ".hidden"])
def test_a_folder_of_other_files_is_not_changed(
    name: str, config: Config, tmp_path: Path, refused: Callable[..., Any]
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    if name == "checkpoints":
        (folder / name).mkdir()
        (folder / name / "fit-00-epoch-00001.ckpt").write_text("mine")
    else:
        (folder / name).write_text("mine")
    before = contents(folder)
    with refused(str(folder), "is not empty and holds no run", name, "choose another folder"):
        execute(config, folder)
    assert contents(folder) == before


def test_files_of_a_run_killed_before_its_first_epoch_are_replaced(config: Config, tmp_path: Path) -> None:
    """Whatever the moment: between any two of the first writes, or within one."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".lock").touch()
    (folder / ".config.yaml.0123456789ab.tmp").write_text("half a fi")
    (folder / "config.yaml").write_text(config.as_yaml())
    assert execute(config, folder).metrics["test"]["samples"] == 16


class NoSpace:
    """Lets so many writes of whole files through, then kills the process, as it were."""

    def __init__(self, writes: int, original: Callable[..., None]) -> None:
        self.left, self.real = writes, original

    def __call__(self, *arguments: Any) -> None:
        if self.left == 0:
            raise SystemExit(9)
        self.left -= 1
        self.real(*arguments)


@pytest.mark.parametrize("writes", range(9))
def test_a_run_stopped_before_any_of_its_writes_is_resumed(
    writes: int, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three files at the start, the list of epochs, two checkpoints, the student, the result."""
    execute(config, tmp_path / "whole")
    folder = tmp_path / "run"
    with monkeypatch.context() as context:
        context.setattr("tutelage.files.os.replace", NoSpace(writes, os.replace))
        if writes < 8:
            with pytest.raises(SystemExit):
                execute(config, folder)
        else:
            execute(config, folder)
    execute(config, folder)
    assert (folder / "student.safetensors").read_bytes() == (tmp_path / "whole" / "student.safetensors").read_bytes()
    assert numbers(folder) == numbers(tmp_path / "whole")
    assert epochs(folder) == epochs(tmp_path / "whole")
    assert {entry.name for entry in folder.iterdir()} == FILES


HOLD = """
import sys, filelock
lock = filelock.FileLock(sys.argv[1]).acquire(timeout=0)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def locked_folder(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A folder that another process is using."""
    folder = tmp_path / "run"
    folder.mkdir()
    command = [sys.executable, "-c", HOLD, str(folder / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield folder, process
        process.kill()


def test_a_locked_folder_is_refused_until_its_process_ends(
    locked_folder: tuple[Path, subprocess.Popen[str]], config: Config, refused: Callable[..., Any]
) -> None:
    folder, process = locked_folder
    with refused("another process is using", str(folder), "wait for it, or choose another"):
        execute(config, folder)
    assert [entry.name for entry in folder.iterdir()] == [".lock"]
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert execute(config, folder).metrics


def test_the_lock_is_released_after_an_error(config: Config, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(TutelageError):
        execute(config.replace(lr=1e30, epochs=4), folder)
    with RunFolder(folder).lock():
        pass


@pytest.mark.parametrize("location", ["file", "file/below", "/proc/nothing/here"])
def test_a_path_at_which_no_folder_can_be_made(
    location: str, config: Config, tmp_path: Path, refused: Callable[..., Any]
) -> None:
    (tmp_path / "file").write_text("mine")
    with refused("cannot write to", location, "choose another folder"):
        execute(config, tmp_path / location)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_not_writable(config: Config, tmp_path: Path, refused: Callable[..., Any]) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    with refused("cannot write to", str(folder), "choose another folder"):
        execute(config, folder)


@pytest.mark.parametrize(
    ("name", "text", "pieces"),
    [
        ("config.yaml", "{", ("cannot read", "config.yaml", "choose another folder")),
        ("config.yaml", "[1, 2]", ("different run",)),
        ("inputs.json", "{", ("cannot read", "inputs.json")),
        ("inputs.json", "[1]", ("inputs.json",)),
        ("result.json", "{", ("cannot read", "result.json", "remove it")),
    ],
)
def test_damaged_files_of_a_run_are_reported(
    name: str, text: str, pieces: tuple[str, ...], config: Config, tmp_path: Path, refused: Callable[..., Any]
) -> None:
    folder = tmp_path / "run"
    execute(config, folder)
    (folder / name).write_text(text)
    with refused(*pieces):
        execute(config, folder)


def test_numbers_that_json_cannot_represent_are_handled(tiny_data: Data, tmp_path: Path) -> None:
    """A held-out part without labels gives no accuracy to select by, and the run is not lost over that."""
    from dataclasses import replace

    from tutelage.api import train

    held_out = tiny_data.validation
    assert held_out is not None
    data = replace(tiny_data, validation=replace(held_out, labels=held_out.labels * 0 - 1))
    result = train(STUDENT, data, epochs=1, out=tmp_path / "run")
    assert "selected" not in result.metrics
    assert all(math.isfinite(value) for value in epochs(tmp_path / "run")[0]["learners"]["student"].values())


def test_folder_of_an_older_version_is_resumed(config: Config, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    execute(config, folder)
    file = folder / "config.yaml"
    folder_result = yaml.safe_load(file.read_text())
    del folder_result["views"]
    folder_result["answers"], folder_result["answers_as"] = (
        folder_result.pop("teacher_cache"),
        folder_result.pop("teacher_cache_dtype"),
    )
    file.write_text(yaml.safe_dump(folder_result))
    (folder / "result.json").unlink()
    assert execute(config.replace(teacher_cache=str(tmp_path / "cache")), folder).metrics["method"] == "plain"
