"""Paths as users write them, files that are either the old or the new ones, and folders with one writer."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from tutelage.errors import TutelageError, one_line

if sys.platform != "win32":
    import fcntl

LOCK = ".lock"
LARGEST = 2**28
"""Bytes of a file of records that are read at most; a million epochs take half of it."""

_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{12}\.tmp", re.DOTALL)
_LONGEST = 100  # characters of a file's name in that of its temporary file

_REMEDIES = {
    errno.ENOSPC: "free some space and run again",
    errno.EDQUOT: "free some of your quota and run again",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder that you may write to",
    errno.EISDIR: "it is a folder: name a file in it",
    errno.ENOTDIR: "a part of the path is a file: choose another folder",
    errno.EEXIST: "a part of the path is a file: choose another folder",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def as_path(path: str | os.PathLike[str]) -> Path:
    """The path that a user names; ``~`` is the home folder.

    Raises:
        TutelageError: there is no such home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise TutelageError(f"{str(path)!r} cannot be expanded ({one_line(error)}); write the whole path") from error


def read_file(path: str | os.PathLike[str], largest: int | None = LARGEST) -> bytes:
    """The bytes of an ordinary file. A pipe, which may never end, and a device are refused before they are opened.

    Args:
        path: the file, or a link to one.
        largest: bytes that it may have; ``None`` for any number.

    Raises:
        OSError: it cannot be read, is no ordinary file, or is larger.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError("it is a folder" if stat.S_ISDIR(status.st_mode) else "it is no ordinary file")
    if largest is not None and status.st_size > largest:
        raise OSError(f"it has {status.st_size:,} bytes, and at most {largest:,} are read")
    return Path(path).read_bytes()


def is_read_only(folder: Path) -> bool:
    """Whether a folder is there and nothing can be written in it."""
    return folder.is_dir() and not os.access(folder, os.W_OK)


def atomic_write(path: str | os.PathLike[str], data: bytes, *, follow: bool = True) -> None:
    """Write a whole file at once: a reader, or a run that was killed, finds the old bytes or the new ones.

    The bytes go to a hidden file in the same folder, reach the disk, and take the name in one step. Folders
    that are missing are made, since hours of training may lie before the writing. A symbolic link stays one, and the
    file that it leads to is written; unless ``follow`` is false, for in a folder that somebody else has made a link may
    lead to any file of the user's.

    Raises:
        TutelageError: the disk is full, the folder is not writable, ...; what was there is as it was.
    """
    target = as_path(path)
    target = Path(os.path.realpath(target)) if follow else target.absolute()
    with _refusing(path):
        if target.is_dir():  # the root folder has no name, which its temporary file would have too
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        target.parent.mkdir(parents=True, exist_ok=True)
        publish(target, data)


def publish(target: Path, data: bytes, *, overwrite: bool = True) -> None:
    """Give a whole file its name in one step; its folder must exist.

    The temporary file is locked while it is written, so that one whose writer was killed can be recognised: those of
    the same target are removed first.

    Raises:
        OSError: of any kind; ``FileExistsError`` where there is such a file and it must stay.
    """
    remove_abandoned(target.parent, lambda name: name == target.name[:_LONGEST])
    while True:
        # Not tempfile.mkstemp: it makes files that only their owner may read, and would hand that mode on.
        temporary = target.with_name(f".{target.name[:_LONGEST]}.{uuid.uuid4().hex[:12]}.tmp")
        try:
            with temporary.open("xb") as file:
                if not _lock(file, wait=True):  # removed by another process before it was locked
                    continue
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                if sys.platform == "win32":
                    file.close()  # an open file cannot be renamed there
                (os.replace if overwrite else os.link)(temporary, target)
            break
        finally:  # nothing is left behind, not even by Ctrl-C
            with contextlib.suppress(OSError):
                temporary.unlink()
    _sync_folder(target.parent)


def is_temporary(name: str, of: Callable[[str], bool]) -> bool:
    """Whether this is the name of a temporary file of ``publish`` for one of these targets."""
    match = _TEMPORARY.fullmatch(name)
    return match is not None and of(match[1])


def remove_abandoned(folder: Path, of: Callable[[str], bool]) -> None:
    """Remove the temporary files for these targets that writers left in a folder when they were killed.

    Those of writers that are still alive stay, and nothing else is touched. What cannot be removed stays, too.
    """
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if is_temporary(name, of):
                with contextlib.suppress(OSError), (folder / name).open("r+b") as file:
                    if _lock(file, wait=False):
                        (folder / name).unlink()


def _lock(file: BinaryIO, *, wait: bool) -> bool:
    """Lock an open file until it is closed; false where another process holds it or has removed it.

    File systems without locks count as locked by others, so nothing is removed there. Windows needs no locks: it
    removes no file that is open.
    """
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return wait
    return os.fstat(file.fileno()).st_nlink > 0


@contextmanager
def _refusing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an error of the system into one line with a remedy."""
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "check the disk and the folder")
        raise TutelageError(f"cannot write {str(path)!r}: {error.strerror or one_line(error)}; {remedy}") from error


def _sync_folder(folder: Path) -> None:
    """Make the new name outlast a power cut, where the system lets a folder be opened (Windows does not)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class LockedFolder:
    """A folder in which one process writes, for as long as it is the folder that the process locked.

    A folder that is removed, moved or replaced meanwhile is not made again: half a folder would be neither this
    writer's nor anybody else's.

    Args:
        path: the folder.
        writer: what another writer would be, for messages: ``process`` or ``study``.
    """

    def __init__(self, path: Path, writer: str) -> None:
        self.path, self._writer = path, writer
        self._locked: os.stat_result | None = None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder if it is missing, and lock it; the lock of a process that is killed is released.

        Raises:
            TutelageError: another process holds the lock, or nothing can be written there.
        """
        try:
            str(self.path).encode()
        except UnicodeEncodeError:  # safetensors opens no such path
            raise TutelageError(f"the path {str(self.path)!r} is no UTF-8; choose another folder") from None
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / LOCK).acquire(timeout=0)
        except Timeout:
            raise TutelageError(
                f"another {self._writer} is at work in {self.path}; wait for it, or choose another folder"
            ) from None
        except (OSError, NotImplementedError) as error:
            text = getattr(error, "strerror", None) or one_line(error)
            raise TutelageError(f"cannot write in {self.path}: {text}; choose another folder") from error
        with lock:
            self._locked = (self.path / LOCK).stat()
            try:
                yield
            finally:
                self._locked = None

    def check(self) -> None:
        """Check that the folder is still the one that was locked.

        Raises:
            TutelageError: it is not.
        """
        try:
            same = self._locked is None or os.path.samestat(self._locked, (self.path / LOCK).stat())
        except OSError:
            same = False
        if not same:
            raise TutelageError(
                f"{self.path} was removed, moved or replaced (or its file {LOCK} was) while it was in use; put it back "
                "if you can, and run the same command again"
            )

    def write(self, path: Path, data: bytes) -> None:
        """Write a whole file at once, in the folder or in a folder in it.

        Raises:
            TutelageError: the folder is not the one that was locked, the disk is full, ...
        """
        self.check()
        with _refusing(path):
            path.parent.mkdir(exist_ok=True)
            publish(path, data)

    def append(self, path: Path, text: str) -> None:
        """Add text to a file in the folder.

        Raises:
            TutelageError: as for ``write``.
        """
        self.check()
        with _refusing(path), path.open("a", encoding="utf-8") as file:
            file.write(text)
