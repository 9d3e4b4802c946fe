"""Files that are either the old ones or the new ones, whatever happens in between."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from pathlib import Path

from tutelage.errors import TutelageError, one_line

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


def atomic_write(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a whole file at once: a reader, or a run that was killed, finds the old bytes or the new ones.

    The bytes go to a hidden file in the same folder, reach the disk, and take the name in one step. Folders
    that are missing are made, since hours of training may lie before the writing. A symbolic link stays one.

    Raises:
        TutelageError: the disk is full, the folder is not writable, ...; what was there is as it was.
    """
    target = Path(os.path.realpath(as_path(path)))
    # Not tempfile.mkstemp: it makes files that only their owner may read, and would hand that mode on.
    temporary = target.with_name(f".{target.name[:100]}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:  # also of Ctrl-C nothing is left behind
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "check the disk and the folder")
        raise TutelageError(f"cannot write {str(path)!r}: {error.strerror or one_line(error)}; {remedy}") from error
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """Make the new name outlast a power cut, where the system lets a folder be opened (Windows does not)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
