"""Temporary files of killed writers, and folders that are removed while a process writes to them."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tutelage.errors import TutelageError
from tutelage.files import LockedFolder, atomic_write, publish, remove_abandoned

Refused = Callable[..., AbstractContextManager[None]]

ABANDONED = ".result.json.0123456789ab.tmp"
# Names that a temporary file of ours never has, and those of other files.
OTHERS = (
    "result.json.0123456789ab.tmp",
    ".result.json.tmp",
    ".result.json.0123456789AB.tmp",
    ".result.json.0123456789ab.tmp~",
    ".thesis.tex.0123456789ab.tmp",
    ".result.json.swp",
)


def test_a_write_removes_what_killed_writers_of_the_same_file_left(tmp_path: Path) -> None:
    (tmp_path / ABANDONED).write_text("half a fi")
    for name in OTHERS:
        (tmp_path / name).write_text("mine")
    atomic_write(tmp_path / "result.json", b"whole")
    assert set(os.listdir(tmp_path)) == {"result.json", *OTHERS}


def test_a_file_with_a_long_name_too(tmp_path: Path) -> None:
    long = "a" * 240
    (tmp_path / f".{'a' * 100}.0123456789ab.tmp").touch()
    atomic_write(tmp_path / long, b"whole")
    assert os.listdir(tmp_path) == [long]


WRITE = """
import os, sys, time
import tutelage.files
def wait(descriptor):
    print("writing", flush=True)
    sys.stdin.read()
os.fsync = wait
tutelage.files.atomic_write(sys.argv[1], b"theirs")
"""


def test_the_file_of_a_living_writer_stays_and_that_of_a_killed_one_goes(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    command = [sys.executable, "-c", WRITE, str(target)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        atomic_write(target, b"ours")
        assert len(os.listdir(tmp_path)) == 2
        process.kill()
        process.wait()
    remove_abandoned(tmp_path, lambda name: name == "result.json")
    assert os.listdir(tmp_path) == ["result.json"]
    assert target.read_bytes() == b"ours"


def test_many_writers_of_one_file_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for _ in range(30):
                atomic_write(tmp_path / "result.json", bytes([number]) * 1000)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert os.listdir(tmp_path) == ["result.json"]
    assert len(set((tmp_path / "result.json").read_bytes())) == 1


def test_a_file_that_must_stay_stays(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(FileExistsError):
        publish(tmp_path / "a", b"new", overwrite=False)
    publish(tmp_path / "b", b"new", overwrite=False)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old", "b": "new"}


def test_where_files_cannot_be_locked_nothing_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", fail)
    (tmp_path / ABANDONED).touch()
    atomic_write(tmp_path / "result.json", b"whole")
    assert set(os.listdir(tmp_path)) == {"result.json", ABANDONED}


def remove(folder: Path) -> None:
    shutil.rmtree(folder)


def replace(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def replace_by_another_writers(folder: Path) -> None:
    replace(folder)
    (folder / ".lock").touch()


def move(folder: Path) -> None:
    folder.rename(folder.with_name("moved"))


def put_a_file_there(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("mine")


def remove_the_lock(folder: Path) -> None:
    (folder / ".lock").unlink()


@pytest.mark.parametrize(
    "change", [remove, replace, replace_by_another_writers, move, put_a_file_there, remove_the_lock]
)
def test_nothing_is_written_into_a_folder_that_is_not_the_locked_one(
    change: Callable[[Path], None], tmp_path: Path, refused: Refused
) -> None:
    path = tmp_path / "run"
    folder = LockedFolder(path, "process")
    with folder.locked():
        folder.write(path / "inside" / "a", b"a")
        change(path)
        before = sorted(tmp_path.rglob("*"))
        for act in (lambda: folder.write(path / "inside" / "b", b"b"), lambda: folder.append(path / "c", "c")):
            with refused(str(path), "was removed, moved or replaced", "run the same command again"):
                act()
        assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_was_put_back_is_written_to_again(tmp_path: Path) -> None:
    folder = LockedFolder(tmp_path / "run", "process")
    with folder.locked():
        move(tmp_path / "run")
        (tmp_path / "moved").rename(tmp_path / "run")
        folder.write(tmp_path / "run" / "a", b"a")


def test_a_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr("tutelage.files.FileLock.acquire", fail)
    with refused("cannot write to", "does not appear to support flock", "another folder"):
        LockedFolder(tmp_path, "process").locked().__enter__()


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with LockedFolder(tmp_path, "study").locked(), pytest.raises(TutelageError, match="another study is using"):
        LockedFolder(tmp_path, "study").locked().__enter__()


@pytest.mark.parametrize("target_path", ["/", ".", "", "folder"])
def test_a_folder_is_not_written_to_as_a_file(
    target_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for follow in (True, False):
        with pytest.raises(TutelageError, match=r"cannot write .*: Is a directory; it is a folder: name a file in it"):
            atomic_write(target_path, b"", follow=follow)
    assert os.listdir(tmp_path) == ["folder"]


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_is_replaced_where_it_is_not_to_be_followed(exists: bool, tmp_path: Path) -> None:
    if exists:
        (tmp_path / "precious").write_text("mine")
    (tmp_path / "link").symlink_to("precious")
    atomic_write(tmp_path / "link", b"new", follow=False)
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "link").read_bytes() == b"new"
    assert (tmp_path / "precious").exists() == exists
    assert not exists or (tmp_path / "precious").read_text() == "mine"
