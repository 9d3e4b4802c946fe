"""Runs whose folder has leftover files, is removed, is on a full disk, or is read-only."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tutelage.config import Config
from tutelage.errors import TutelageWarning
from tutelage.runs import execute

STUDENT = "resnet8x0.25"
Refused = Callable[..., AbstractContextManager[None]]


@pytest.fixture
def config(tiny_npz: str) -> Config:
    return Config(data=tiny_npz, student=STUDENT, epochs=3, batch_size=16, lr=0.1, device="cpu", workers=0)


def temporaries(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith(".tmp")]


# --- leftovers of killed writes


@pytest.mark.parametrize(
    "before",
    [
        [".config.yaml.0123456789ab.tmp"],
        ["config.yaml", ".inputs.json.0123456789ab.tmp"],
        ["config.yaml", "inputs.json", ".versions.json.0123456789ab.tmp"],
        ["config.yaml", "inputs.json", "versions.json", ".metrics.jsonl.0123456789ab.tmp"],
        ["config.yaml", "metrics.jsonl", "checkpoints/.fit-00-epoch-00001.ckpt.0123456789ab.tmp"],
        [".inputs.json.0123456789ab.tmp", ".config.yaml.ba9876543210.tmp"],
    ],
    ids=lambda names: names[-1],
)
def test_a_run_killed_before_its_first_checkpoint_is_resumed(before: list[str], config: Config, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for name in before:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    assert execute(config, folder).metrics["test"]["samples"] == 16
    assert temporaries(folder) == []


def test_leftovers_of_later_writes_are_removed_at_the_next_start(config: Config, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    reference = execute(config, folder)
    (folder / "result.json").unlink()
    names = (
        ".student.safetensors",
        ".result.json",
        "checkpoints/.fit-00-epoch-00003.ckpt",
        "checkpoints/.fit-01-epoch-00001.ckpt",
    )
    for name in names:
        (folder / f"{name}.0123456789ab.tmp").write_text("half a fi")
    users = [folder / ".thesis.tex.0123456789ab.tmp", folder / "notes.tmp", folder / "checkpoints" / ".mine.ckpt.tmp"]
    for path in users:
        path.write_text("mine")
    assert execute(config, folder).metrics["test"] == reference.metrics["test"]
    assert sorted(temporaries(folder)) == sorted(users)


def test_a_temporary_file_of_another_program_does_not_make_a_folder_a_run(
    config: Config, tmp_path: Path, refused: Refused
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".thesis.tex.0123456789ab.tmp").write_text("mine")
    with refused("holds no run", ".thesis.tex"):
        execute(config, tmp_path / "run")
    assert os.listdir(tmp_path / "run") == [".thesis.tex.0123456789ab.tmp"]


def test_the_configuration_of_another_program_is_not_overwritten(
    config: Config, tmp_path: Path, refused: Refused
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("database: postgres\n")
    with refused("holds no run", "config.yaml", "choose another folder"):
        execute(config, tmp_path / "run")
    assert (tmp_path / "run" / "config.yaml").read_text() == "database: postgres\n"


BY_HAND = {
    "fields": "data: digits\nepochs: 3\n",
    "comment": "# mine\ndata: digits\n",
    "copy": "",  # of a run's
}


@pytest.mark.parametrize("kind", BY_HAND)
def test_a_configuration_written_by_hand_is_not_replaced(
    kind: str, config: Config, tmp_path: Path, refused: Refused
) -> None:
    text = BY_HAND[kind] or config.replace(epochs=7).as_yaml()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(text)
    with refused("holds no run", "config.yaml", "choose another folder"):
        execute(config, tmp_path / "run")
    assert {file.name: file.read_text() for file in (tmp_path / "run").iterdir()} == {"config.yaml": text}


def test_a_comment_in_the_configuration_of_a_run_that_did_not_start_is_not_lost(
    config: Config, tmp_path: Path, refused: Refused
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".lock").touch()
    (folder / "inputs.json").write_text("{}")
    (folder / "config.yaml").write_text(f"# mine\n{config.as_yaml()}")
    with refused("holds no run", "config.yaml"):
        execute(config, folder)
    (folder / "config.yaml").write_text(config.as_yaml())
    assert execute(config, folder).metrics


# --- a folder that is removed during the run


def remove(folder: Path) -> None:
    shutil.rmtree(folder)


def replace(folder: Path) -> None:
    folder.rename(folder.with_name("other"))
    folder.mkdir()
    (folder / ".lock").touch()


def remove_the_lock(folder: Path) -> None:
    (folder / ".lock").unlink()


@pytest.mark.parametrize(("change", "epoch"), [(remove, 1), (remove, 3), (replace, 1), (remove_the_lock, 3)])
def test_a_run_whose_folder_is_removed_ends_with_an_error(
    change: Callable[[Path], None], epoch: int, config: Config, tmp_path: Path, refused: Refused
) -> None:
    folder = tmp_path / "run"
    files: list[Path] = []

    def remove_folder(record: dict[str, Any]) -> None:
        if record["epoch"] == epoch and not files:
            change(folder)
            files.extend([tmp_path, *tmp_path.rglob("*")])

    with refused(str(folder), "was removed, moved or replaced", "run the same command again"):
        execute(config, folder, report=remove_folder)
    assert [tmp_path, *tmp_path.rglob("*")] == files  # nothing half-made
    assert execute(config, folder).metrics["test"]["samples"] == 16  # and the folder is usable


class Full:
    """Stands for a function of ``os`` and fails for files in a folder from some call on."""

    def __init__(self, name: str, calls: int, code: int) -> None:
        self.real, self.left, self.code = getattr(os, name), calls, code

    def __call__(self, *arguments: Any) -> Any:
        if self.left == 0:
            raise OSError(self.code, os.strerror(self.code))
        self.left -= 1
        return self.real(*arguments)


@pytest.mark.parametrize(
    ("function", "calls", "code"),
    [("replace", 0, errno.ENOSPC), ("replace", 5, errno.EROFS), ("replace", 8, errno.ENOSPC), ("fsync", 7, errno.EIO)],
)
def test_a_full_disk_at_any_write_is_reported_and_the_run_resumes(
    function: str,
    calls: int,
    code: int,
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Refused,
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as context, refused("cannot write", os.strerror(code)):
        context.setattr(os, function, Full(function, calls, code))
        execute(config, folder)
    assert temporaries(folder) == []
    assert execute(config, folder).metrics["test"]["samples"] == 16


# --- a read-only medium


def test_a_finished_run_on_a_read_only_medium_is_read_back(
    config: Config, tmp_path: Path, read_only: Callable[[Path], None], refused: Refused
) -> None:
    first = execute(config, tmp_path / "run")
    (tmp_path / "run" / ".lock").unlink()  # a copy on a medium may lack it
    (tmp_path / "run" / ".result.json.0123456789ab.tmp").touch()
    read_only(tmp_path)
    second_result = execute(config, tmp_path / "run")
    assert second_result.metrics == first.metrics
    assert len(second_result.history) == 3
    with refused("different run", "lr: 0.1 there, 0.2 here"):
        execute(config.replace(lr=0.2), tmp_path / "run")
    with refused("cannot write to", "Read-only file system", "choose another folder"):
        execute(config, tmp_path / "other")


def test_a_finished_run_is_read_back_while_another_process_holds_its_lock(config: Config, tmp_path: Path) -> None:
    from filelock import FileLock

    first = execute(config, tmp_path / "run")
    with FileLock(tmp_path / "run" / ".lock"):
        assert execute(config, tmp_path / "run").metrics == first.metrics


def test_an_unfinished_run_on_a_read_only_medium_is_refused(
    config: Config, tmp_path: Path, read_only: Callable[[Path], None], refused: Refused
) -> None:
    execute(config, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    read_only(tmp_path)
    with refused("cannot write to", "Read-only file system", "choose another folder"):
        execute(config, tmp_path / "run")


# --- damaged checkpoints


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(("damage", "both_damaged"), [(shorten, False), (empty, True)])
def test_a_damaged_newest_checkpoint_costs_an_epoch(
    damage: Callable[[Path], None], both_damaged: bool, config: Config, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    execute(config, folder)
    content = (folder / "student.safetensors").read_bytes()
    (folder / "result.json").unlink()
    for epoch in (2, 3) if both_damaged else (3,):
        damage(folder / "checkpoints" / f"fit-00-epoch-{epoch:05d}.ckpt")
    with warnings.catch_warnings(record=True) as records:
        warnings.simplefilter("always", TutelageWarning)
        execute(config, folder)
    assert ["starting anew" in str(entry.message) for entry in records] == ([False, True] if both_damaged else [False])
    assert (folder / "student.safetensors").read_bytes() == content


def test_a_folder_at_the_path_of_a_checkpoint_is_named(config: Config, tmp_path: Path, refused: Refused) -> None:
    folder = tmp_path / "run"
    execute(config, folder)
    (folder / "result.json").unlink()
    newest_file = folder / "checkpoints" / "fit-00-epoch-00003.ckpt"
    newest_file.unlink()
    newest_file.mkdir()
    with refused("cannot write", newest_file.name, "Is a directory", "it is a folder"):
        execute(config, folder)


@pytest.mark.parametrize("text", ['{"epoch": 1, "lear', "\0\0\0", ""])
def test_earlier_content_of_the_list_of_epochs_does_not_matter_on_resume(
    text: str, config: Config, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    execute(config, folder)
    line_count = (folder / "metrics.jsonl").read_bytes().count(b"\n")
    (folder / "result.json").unlink()
    (folder / "metrics.jsonl").write_text(text)
    assert len(execute(config, folder).history) == 3
    assert (folder / "metrics.jsonl").read_bytes().count(b"\n") == line_count


def test_clocks_that_run_backwards_do_not_matter(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest checkpoint is told by its name, not by its time."""
    execute(config, tmp_path / "whole")
    folder = tmp_path / "run"

    class StopError(Exception):
        pass

    def stop(record: dict[str, Any]) -> None:
        if record["epoch"] == 2:
            raise StopError

    with pytest.raises(StopError):
        execute(config, folder, report=stop)
    os.utime(folder / "checkpoints" / "fit-00-epoch-00002.ckpt", (0, 0))
    monkeypatch.setattr("time.time", lambda: 0.0)
    execute(config, folder)
    assert (folder / "student.safetensors").read_bytes() == (tmp_path / "whole" / "student.safetensors").read_bytes()


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="names of files are Unicode there")
def test_a_path_that_is_not_utf_8_is_refused_before_training(config: Config, tmp_path: Path, refused: Refused) -> None:
    with refused("caf\\udce9", "is not UTF-8", "choose another folder"):
        execute(config, tmp_path / "caf\udce9")
    assert not (tmp_path / "caf\udce9").exists()
