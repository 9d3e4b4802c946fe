"""Users' paths, atomic writes, and folders that one process writes to."""

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
"""Maximum size in bytes of files of records; a million epochs take half of it."""

_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{12}\.tmp", re.DOTALL)
_LONGEST = 100  # characters of a file's name that its temporary file's name contains

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
    """Convert a user's path; ``~`` is expanded to the home folder.

    Raises:
        TutelageError: there is no such home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise TutelageError(f"{str(path)!r} cannot be expanded ({one_line(error)}); write the whole path") from error


def read_file(path: str | os.PathLike[str], largest: int | None = LARGEST) -> bytes:
    """Read a regular file. Pipes, which may never end, and devices raise an error before they are opened.

    Args:
        path: the file, or a link to one.
        largest: maximum size in bytes; ``None`` for no limit.

    Raises:
        OSError: the file cannot be read, is not a regular file, or is larger.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError("it is a folder" if stat.S_ISDIR(status.st_mode) else "it is not a regular file")
    if largest is not None and status.st_size > largest:
        raise OSError(f"it has {status.st_size:,} bytes, and at most {largest:,} are read")
    return Path(path).read_bytes()


def is_read_only(folder: Path) -> bool:
    """Whether a folder exists and is not writable."""
    return folder.is_dir() and not os.access(folder, os.W_OK)


def atomic_write(path: str | os.PathLike[str], data: bytes, *, follow: bool = True) -> None:
    """Write a file atomically: readers, and a process that is killed, leave either the old or the new content.

    The data is written to a hidden file in the same folder, flushed to disk and renamed. Missing folders are made, so
    that a result of hours of training is not lost. The target of a symbolic link is written, unless ``follow`` is
    false: in a folder that somebody else made, a link may point to any file of the user's.

    Raises:
        TutelageError: the disk is full, the folder is not writable, ...; the old file is unchanged.
    """
    target = as_path(path)
    target = Path(os.path.realpath(target)) if follow else target.absolute()
    with _with_remedy(path):
        if target.is_dir():  # the root folder has no name for its temporary file
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        target.parent.mkdir(parents=True, exist_ok=True)
        publish(target, data)


def check_new(path: Path) -> None:
    """Refuse to overwrite a user's file.

    Raises:
        TutelageError: there is such a file.
    """
    if path.exists() or path.is_symlink():
        raise TutelageError(f"{path} exists already; remove it, or choose another name")


def publish(target: Path, data: bytes | memoryview, *, overwrite: bool = True, durable: bool = True) -> None:
    """Write a file atomically in a folder that exists.

    The temporary file is locked while it is written. Unlocked temporary files belong to writers that were killed; those
    of the same target are removed first.

    Args:
        target: the file.
        data: its content.
        overwrite: whether an existing file is replaced.
        durable: whether the file survives a power failure as soon as this returns. Without it, which is faster, it may
            then be damaged, and abandoned files stay.

    Raises:
        OSError: of any kind; ``FileExistsError`` if the file exists and ``overwrite`` is false.
    """
    if durable:
        remove_abandoned(target.parent, lambda name: name == target.name[:_LONGEST])
    while True:
        # Not tempfile.mkstemp, whose files only their owner may read.
        temporary = target.with_name(f".{target.name[:_LONGEST]}.{uuid.uuid4().hex[:12]}.tmp")
        try:
            with temporary.open("xb") as file:
                if not _lock(file, wait=True):  # removed by another process before it was locked
                    continue
                file.write(data)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
                if sys.platform == "win32":
                    file.close()  # an open file cannot be renamed there
                (os.replace if overwrite else os.link)(temporary, target)
            break
        finally:  # also after Ctrl-C
            with contextlib.suppress(OSError):
                temporary.unlink()
    if durable:
        _sync_folder(target.parent)


def is_temporary(name: str, of: Callable[[str], bool]) -> bool:
    """Whether ``name`` is that of a temporary file of ``publish`` for a target for which ``of`` is true."""
    match = _TEMPORARY.fullmatch(name)
    return match is not None and of(match[1])


def remove_abandoned(folder: Path, of: Callable[[str], bool]) -> None:
    """Remove temporary files of writers that were killed, for targets for which ``of`` is true.

    Files of writers that are still running stay, and so do files that cannot be removed.
    """
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if is_temporary(name, of):
                with contextlib.suppress(OSError), (folder / name).open("r+b") as file:
                    if _lock(file, wait=False):
                        (folder / name).unlink()


def _lock(file: BinaryIO, *, wait: bool) -> bool:
    """Lock an open file until it is closed; returns false if another process holds the lock or has removed the file.

    On file systems without locks, files count as locked by others, so that none is removed. Windows needs no locks: an
    open file cannot be removed there.
    """
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return wait
    return os.fstat(file.fileno()).st_nlink > 0


@contextmanager
def _with_remedy(path: str | os.PathLike[str]) -> Iterator[None]:
    """Convert an ``OSError`` to a ``TutelageError`` with a remedy."""
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "check the disk and the folder")
        raise TutelageError(f"cannot write {str(path)!r}: {error.strerror or one_line(error)}; {remedy}") from error


def _sync_folder(folder: Path) -> None:
    """Flush a folder to disk, so that a new name survives a power failure; not possible on Windows."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class LockedFolder:
    """A folder that one process writes to, as long as it is the folder that the process locked.

    A folder that was removed, moved or replaced in the meantime is not made again, since it would be incomplete.

    Args:
        path: the folder.
        writer: the kind of writer, for messages: ``process`` or ``study``.
    """

    def __init__(self, path: Path, writer: str) -> None:
        self.path, self._writer = path, writer
        self._locked: os.stat_result | None = None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder if it is missing, and lock it; the system releases the lock if the process is killed.

        Raises:
            TutelageError: another process holds the lock, or the folder is not writable.
        """
        try:
            str(self.path).encode()
        except UnicodeEncodeError:  # safetensors cannot open such a path
            raise TutelageError(f"the path {str(self.path)!r} is not UTF-8; choose another folder") from None
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / LOCK).acquire(timeout=0)
        except Timeout:
            raise TutelageError(
                f"another {self._writer} is using {self.path}; wait for it, or choose another folder"
            ) from None
        except (OSError, NotImplementedError) as error:
            text = getattr(error, "strerror", None) or one_line(error)
            raise TutelageError(f"cannot write to {self.path}: {text}; choose another folder") from error
        with lock:
            self._locked = (self.path / LOCK).stat()
            try:
                yield
            finally:
                self._locked = None

    def check(self) -> None:
        """Check that the folder is still the one that was locked.

        Raises:
            TutelageError: it was removed, moved or replaced.
        """
        try:
            unchanged = self._locked is None or os.path.samestat(self._locked, (self.path / LOCK).stat())
        except OSError:
            unchanged = False
        if not unchanged:
            raise TutelageError(
                f"{self.path} was removed, moved or replaced (or its file {LOCK} was) while it was in use; put it back "
                "if you can, and run the same command again"
            )

    def write(self, path: Path, data: bytes) -> None:
        """Write a file atomically, in the folder or in one of its subfolders.

        Raises:
            TutelageError: the folder is not the one that was locked, the disk is full, ...
        """
        self.check()
        with _with_remedy(path):
            path.parent.mkdir(exist_ok=True)
            publish(path, data)

    def append(self, path: Path, text: str) -> None:
        """Append text to a file in the folder.

        Raises:
            TutelageError: as for ``write``.
        """
        self.check()
        with _with_remedy(path), path.open("a", encoding="utf-8") as file:
            file.write(text)
