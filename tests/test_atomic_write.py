"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from tutelage.errors import TutelageError
from tutelage.files import atomic_write


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "result.json"
    atomic_write(path, b"old")
    return path


def is_only_file(path: Path) -> bool:
    """There is no temporary file."""
    return os.listdir(path.parent) == [path.name]


def test_atomic_write_replaces(target: Path) -> None:
    atomic_write(target, b"new")
    assert target.read_bytes() == b"new"
    assert is_only_file(target)


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("failure", "text"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; free some"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied; choose a folder"),
        (OSError("the wire was cut"), "the wire was cut; check the disk"),
        (KeyboardInterrupt(), None),
    ],
    ids=["full", "denied", "unnamed", "ctrl-c"],
)
def test_a_failed_write_leaves_the_old_file(
    target: Path, monkeypatch: pytest.MonkeyPatch, function: str, failure: BaseException, text: str | None
) -> None:
    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(KeyboardInterrupt if text is None else TutelageError) as exc_info:
        atomic_write(target, b"new")
    if text is not None:
        assert str(exc_info.value).startswith(f"cannot write {str(target)!r}: {text}")
        assert "\n" not in str(exc_info.value)
    assert target.read_bytes() == b"old"
    assert is_only_file(target)


def test_data_is_synced_before_the_rename(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor: int) -> None:
        events.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def noted_replace(source: Path, destination: Path) -> None:
        assert Path(source).read_bytes() == b"new"
        assert Path(source).parent == target.parent  # a rename needs the same file system
        events.append("name")
        replace(source, destination)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    atomic_write(target, b"new")
    assert events == ["file", "name", "folder"]


def test_a_folder_that_cannot_be_synced_is_ignored(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def only_files(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", only_files)
    atomic_write(target, b"new")
    assert target.read_bytes() == b"new"


def test_a_symbolic_link_remains_a_link(target: Path, tmp_path: Path) -> None:
    link = tmp_path / "latest.json"
    link.symlink_to(target)
    atomic_write(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_file_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        atomic_write(tmp_path / "w", b"new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "w").stat().st_mode) == 0o640


@pytest.mark.parametrize(
    ("name", "text"),
    [("folder", "name a file in it"), ("file/w", "choose another folder"), ("n" * 300, "a shorter name")],
    ids=["folder", "file as folder", "long"],
)
def test_unwritable_paths_raise(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(TutelageError) as exc_info:
        atomic_write(tmp_path / name, b"new")
    assert str(exc_info.value).endswith(text)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
