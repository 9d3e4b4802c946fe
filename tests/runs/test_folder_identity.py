"""Folders of other runs, locked and damaged folders are refused and not changed."""

from __future__ import annotations

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

from tests.runs.run_folders import FILES, epochs, numbers
from tutelage.config import Config
from tutelage.errors import TutelageError
from tutelage.runs import RunFolder, execute


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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
