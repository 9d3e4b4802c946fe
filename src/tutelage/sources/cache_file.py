"""A file of cached teacher outputs: its header, the code of each image, and the outputs with their checksums."""

from __future__ import annotations

import json
import os
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.data.images import HASH_DTYPE
from tutelage.errors import TutelageError, one_line
from tutelage.files import publish
from tutelage.parsing import parse_json

_MAGIC = b"tutelage teacher outputs 1\n"
_HEADER_SIZE = 4096  # bytes before the first sample
_CHECKSUM = np.dtype("<u4")


@dataclass(frozen=True, slots=True)
class Entries:
    """The entries of a file for a batch: which are valid, (B,), and their values, (B, ...), arbitrary if invalid."""

    valid: NDArray[np.bool_]
    values: Tensor


class CacheFile:
    """One memory-mapped file: a header, then per sample its image code, and per view a checksum and the output."""

    def __init__(self, path: Path, header: dict[str, Any], rows: int, views: int, codes: NDArray[Any]) -> None:
        self.path = path
        self.shape, self.dtype = tuple(header["shape"]), getattr(torch, header["precision"])
        size = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize
        outputs = ("outputs", "u1", (views, size))
        self.row = np.dtype([("code", HASH_DTYPE), ("checksums", _CHECKSUM, (views,)), outputs])
        try:
            if not path.exists():
                _create(path, _encoded(header))
            with path.open("r+b") as file:
                _check_header(path, file.read(_HEADER_SIZE), header)
                _allocate(file.fileno(), _HEADER_SIZE + rows * self.row.itemsize)
            length = path.stat().st_size - _HEADER_SIZE
            self.memory = np.memmap(path, self.row, "r+", _HEADER_SIZE, (length // self.row.itemsize,))
        except OSError as error:
            raise TutelageError(
                f"cannot cache the teacher's outputs in {path}: {error.strerror or one_line(error)}; it needs "
                f"{(_HEADER_SIZE + rows * self.row.itemsize) / 2**20:,.0f} MiB: free some space, use fewer views "
                "(--views), or train without teacher_cache="
            ) from error
        self._check_images(codes)
        # Odd factors that differ for each word: any single flipped bit changes the checksum.
        words = -(-size // 4)
        self._factors = (2 * np.arange(words, dtype=_CHECKSUM) + _CHECKSUM.type(1)) * _CHECKSUM.type(2654435761)

    def _check_images(self, codes: NDArray[Any]) -> None:
        """Refuse images that differ from those of the file, and add the codes of images that the file lacks."""
        present = codes != 0
        saved = self.memory["code"][: len(codes)]
        if (clash := present & (saved != 0) & (saved != codes)).any():
            raise TutelageError(
                f"{self.path} holds the outputs for other images: {int(clash.sum())} of {int(present.sum())} training "
                f"samples differ, the first is index {int(clash.argmax())}; choose another folder for teacher_cache="
            )
        new = present & (saved == 0)
        self.memory["code"][: len(codes)][new] = codes[new]

    def read(self, rows: NDArray[Any], views: NDArray[Any]) -> Entries:
        """The entries of these samples under these views."""
        content = np.ascontiguousarray(self.memory["outputs"][rows, views])
        checksums = self.memory["checksums"][rows, views]
        valid = (checksums != 0) & (checksums == self._checksums(content, rows, views))
        values = torch.from_numpy(content).view(self.dtype) if content.size else torch.empty(len(rows), 0)
        return Entries(valid, values.view(len(rows), *self.shape))

    def write(self, rows: NDArray[Any], views: NDArray[Any], outputs: Tensor) -> None:
        """Save the outputs for these samples under these views."""
        content = outputs.cpu().to(self.dtype).contiguous().view(len(rows), -1).view(torch.uint8).numpy()
        self.memory["outputs"][rows, views] = content
        self.memory["checksums"][rows, views] = self._checksums(content, rows, views)  # last: it makes the entry valid

    def _checksums(self, content: NDArray[Any], rows: NDArray[Any], views: NDArray[Any]) -> NDArray[Any]:
        """A checksum of each entry's bytes and position; never 0."""
        words = np.pad(content, ((0, 0), (0, -content.shape[1] % 4))).view(_CHECKSUM)
        positions = rows * self.memory["checksums"].shape[1] + views + 1
        # Unsigned 32-bit arithmetic, modulo 2^32.
        position_sums = positions.astype(_CHECKSUM) * _CHECKSUM.type(0x9E3779B1)
        sums: NDArray[Any] = words @ self._factors + position_sums | _CHECKSUM.type(1)
        return sums


def _encoded(header: dict[str, Any]) -> bytes:
    text = json.dumps(header, sort_keys=True).encode()
    return (_MAGIC + struct.pack("<I", len(text)) + text).ljust(_HEADER_SIZE, b"\0")


def _create(path: Path, header: bytes) -> None:
    """Create the file with its header atomically, unless another process has done so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        publish(path, header, overwrite=False)


def _check_header(path: Path, content: bytes, expected: dict[str, Any]) -> None:
    try:
        if not content.startswith(_MAGIC):
            raise ValueError("its first line is another")
        (length,) = struct.unpack_from("<I", content, len(_MAGIC))
        header = parse_json(content[len(_MAGIC) + 4 :][:length])
        if not isinstance(header, dict):
            raise TypeError("its header is no JSON object")
    except (ValueError, TypeError, struct.error) as error:
        raise TutelageError(
            f"{path} is no file of cached teacher outputs ({one_line(error)}); remove it to compute them again"
        ) from error
    for name, value in expected.items():
        if header.get(name) != value:
            raise TutelageError(
                f"{path} holds outputs of another {name}: {header.get(name)!r}, not {value!r}; choose another folder "
                "for teacher_cache= or remove it"
            )


def _allocate(descriptor: int, length: int) -> None:
    """Allocate disk space up to this length, so that a full disk is an error now.

    Without ``posix_fallocate`` the file is only extended. It is never shortened, since other processes may use it.
    """
    if os.fstat(descriptor).st_size >= length:
        return
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, length)
    else:
        os.truncate(descriptor, length)
