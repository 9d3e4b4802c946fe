"""Checkpoints that survive killed processes, full disks and damaged files.

A file is one line, ``tutelage checkpoint 1 SHA256``, followed by the output of ``torch.save``. It is written under a
temporary name, flushed to disk and renamed, so a file is never incomplete. Reading verifies the checksum and then loads
with ``weights_only``, so no code of the file runs.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from tutelage.errors import TutelageWarning, one_line
from tutelage.files import atomic_write, read_file, remove_abandoned

_MAGIC = b"tutelage checkpoint 1 "
_NAME = re.compile(r"fit-(\d+)-epoch-(\d+)\.ckpt")


class Checkpoints:
    """The checkpoints of one fit in a folder.

    Args:
        folder: the folder of the files; created with the first one.
        fit: the number of the fit within its run.
        keep: the number of files to keep; the second newest is used if the newest is damaged.
        write: writes a file atomically.
    """

    def __init__(
        self, folder: Path, fit: int = 0, keep: int = 2, write: Callable[[Path, bytes], None] = atomic_write
    ) -> None:
        self.folder, self.fit, self.keep, self._write = folder, fit, keep, write
        remove_abandoned(folder, lambda name: _NAME.fullmatch(name) is not None)

    def save(self, epoch: int, state: dict[str, Any]) -> Path:
        """Write the state after this many epochs, then remove the oldest files."""
        path = self.folder / f"fit-{self.fit:02d}-epoch-{epoch:05d}.ckpt"
        buffer = io.BytesIO()
        torch.save(state, buffer)
        payload = buffer.getvalue()
        self._write(path, _MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)
        self._drop_old()
        return path

    def load(self) -> dict[str, Any] | None:
        """The newest undamaged state, or ``None``. Damaged files cause a warning."""
        files = self._files()
        for older, (_, path) in reversed(list(enumerate(files))):
            try:
                state = read(path)
            except Exception as error:  # damaged or malicious files can raise anything
                # torch's own message suggests loading such a file without weights_only.
                is_foreign = isinstance(error, pickle.UnpicklingError)
                why = "it holds more than tensors and plain values" if is_foreign else one_line(error)
                then = "going on from the one before it" if older else "starting anew"
                warnings.warn(f"checkpoint {path} is damaged ({why}); {then}", TutelageWarning, stacklevel=2)
            else:
                if path == files[-1][1]:  # the process may have been killed between writing and removing
                    self._drop_old()
                return state
        return None

    def _drop_old(self) -> None:
        """Remove all but the newest files; errors are ignored."""
        for _, old in self._files()[: -self.keep]:
            with suppress(OSError):
                old.unlink()

    def latest(self) -> Path | None:
        """The newest file, or ``None``."""
        files = self._files()
        return files[-1][1] if files else None

    def _files(self) -> list[tuple[int, Path]]:
        if not self.folder.is_dir():
            return []
        matches = ((match, path) for path in self.folder.iterdir() if (match := _NAME.fullmatch(path.name)))
        return sorted((int(match[2]), path) for match, path in matches if int(match[1]) == self.fit and path.is_file())


def read(path: Path) -> dict[str, Any]:
    """Read the state in a file.

    Raises:
        ValueError: the file is not a checkpoint, or is damaged.
    """
    head, _, payload = read_file(path, largest=None).partition(b"\n")
    if not head.startswith(_MAGIC):
        raise ValueError("it does not begin as a checkpoint does")
    if hashlib.sha256(payload).hexdigest().encode() != head.removeprefix(_MAGIC):
        raise ValueError("its content does not match its checksum")
    state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise ValueError(f"it holds a {type(state).__name__}")
    return state
