"""A folder of decoded pixels, shared by runs and processes."""

from __future__ import annotations

import hashlib
import os
import struct
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tutelage.errors import TutelageError, TutelageWarning, one_line
from tutelage.files import as_path, publish, remove_abandoned

SUFFIX = ".pixels"
_HEADER = struct.Struct("<16s3IIQ16s")  # format, height, width, channels, reserved, checksum, key
_FORMAT = b"tutelage pixels1"
_NAME = 16  # bytes of a key's hash


class PixelCache:
    """Decoded pixels of images, one file per image in 256 folders.

    A file is written under a temporary name and renamed, so that any number of processes may fill a cache at once; its
    header has its key and a checksum. An entry that is damaged, cut off or of another key is decoded and written again.
    If an entry cannot be written, for instance because the disk is full, there is one warning, and nothing more is
    written.

    Files are read rather than mapped: for one image this is faster, the system's page cache shares them between
    processes all the same, and a file that is cut off meanwhile is a missing entry instead of a crash.

    Args:
        folder: the folder; created with its first entry.

    Raises:
        TutelageError: the folder is a file.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = as_path(folder).absolute()
        self._root = str(self.folder)
        if self.folder.is_file():
            raise TutelageError(f"{self.folder}, where decoded images are to be cached, is a file; name a folder")
        with suppress(OSError):
            for part in self.folder.iterdir():
                remove_abandoned(part, lambda name: name.endswith(SUFFIX))
        self._failed = torch.zeros(1, dtype=torch.bool)
        self._failed.share_memory_()  # type: ignore[no-untyped-call]  # one value for all worker processes

    def pixels(self, key: str, decode: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """The entry of ``key``, (H, W, C) uint8; ``decode`` is called, and its result cached, if there is none.

        Args:
            key: text that identifies an image and how it is decoded.
            decode: returns the pixels.
        """
        digest = hashlib.blake2b(os.fsencode(key), digest_size=_NAME).digest()
        name = digest.hex()
        path = f"{self._root}{os.sep}{name[:2]}{os.sep}{name[2:]}{SUFFIX}"  # faster than a Path
        pixels = _read(path, digest)
        if pixels is None:
            pixels = decode()
            self._write(Path(path), digest, pixels)
        return pixels

    def _write(self, path: Path, digest: bytes, pixels: NDArray[np.uint8]) -> None:
        if bool(self._failed):
            return
        content = np.empty(_HEADER.size + pixels.size, np.uint8)
        content[_HEADER.size :] = pixels.reshape(-1)
        _HEADER.pack_into(content.data, 0, _FORMAT, *pixels.shape, 0, _checksum(content[_HEADER.size :]), digest)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            publish(path, content.data, durable=False)
        except OSError as error:
            self._failed.fill_(True)
            warnings.warn(
                TutelageWarning(
                    f"decoded images cannot be cached in {self.folder} ({error.strerror or one_line(error)}); the run "
                    "goes on without adding to the cache; free some space, or name another folder by --cache (cache=)"
                ),
                stacklevel=2,
            )


def _read(path: str, digest: bytes) -> NDArray[np.uint8] | None:
    """The pixels of a file; ``None`` if it does not exist, is damaged, or belongs to another key."""
    try:
        content = np.fromfile(path, np.uint8)
    except OSError:
        return None
    if content.size < _HEADER.size:
        return None
    name, height, width, channels, _, checksum, key = _HEADER.unpack_from(content.data)
    pixels = content[_HEADER.size :]
    if name != _FORMAT or key != digest or pixels.size != height * width * channels or checksum != _checksum(pixels):
        return None
    return pixels.reshape(height, width, channels)


def _checksum(pixels: NDArray[np.uint8]) -> int:
    """The sum of the pixels, eight at a time as whole numbers, and of the rest, modulo 2^64: any changed byte shows."""
    whole = pixels.size // 8 * 8
    words = pixels[:whole].view("<u8")
    return (int(words.sum(dtype=np.uint64)) + int(pixels[whole:].sum(dtype=np.uint64)) + pixels.size) % 2**64
