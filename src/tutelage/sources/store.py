"""A frozen network's answers, kept in files: each view of each sample is asked once, whoever trains.

An answer is found by the teacher's weights, the sample and the number of its view (crop and flip). That the answers of
a file are those of this teacher to these images under this augmentation is checked before one of them is used.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.data.data import Data
from tutelage.data.images import CODE, image_codes
from tutelage.errors import TutelageError, one_line
from tutelage.files import as_path, publish, remove_abandoned
from tutelage.models.derived_role import DerivedRole
from tutelage.models.fingerprint import fingerprint
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.parsing import parse_json

Precision = Literal["float32", "float16", "bfloat16"]

_MAGIC = b"tutelage answers 1\n"
_NAME = re.compile("[0-9a-f]{16}-(float32|bfloat16)-")  # how the name of a file of answers begins
_HEADER = 4096  # bytes before the first sample
_SUM = np.dtype("<u4")


class AnswerStore:
    """The answers of frozen networks to the views of a data set's training samples, in a folder.

    A file each of a teacher, a role (``logits``, ``embedding``, a digest) and the precision that the teacher runs in
    (autocast), memory-mapped: a row a sample, in it an answer a view. It is filled as batches come by, and read by
    every epoch, method, seed and process that asks for the same. Any number of processes may write at once: an answer
    counts from the moment its checksum fits, so that one that was being written when a process died, or was damaged
    since, is simply asked again.

    In float32 an answer is the one that was computed, to the bit. Half precision halves the file and rounds it.
    Kept are vectors (logits, embeddings) and what terms need of maps (attention, flow). Where a whole map is asked for
    the teacher runs: of CIFAR-10 in 162 views those of one stage fill a terabyte. Such are hints, and similarities,
    whose rows depend on who else is in the batch.

    A sample takes 8 bytes, and a view of it 4 and those of the answer; all of a file is reserved when it is made. In
    float32 a view's attention has 4 H W bytes a stage, 5,376 for a wide ResNet's three of 32x32, 16x16 and 8x8; the
    flow between m and n channels 4 m n, 11,264 for the three of a ResNet-20 (16, 16, 32 and 64), and 43,008 for those
    of a WRN-d-2.

    Args:
        folder: where the files are; made if it is missing.
        data: its training part is what is answered about. That the images are those of the files is told by their
            pixels if they are in memory, and else by name, size and time of change of each one's file, as they are now:
            a copy has the time of the original or is taken for another.
        precision: what the answers are kept as.

    Attributes:
        hits, misses: how many answers were read, and how many had to be computed, so far.
    """

    def __init__(self, folder: str | os.PathLike[str], data: Data, precision: Precision = "float32") -> None:
        self.folder, self.views, self.precision = as_path(folder), data.views, precision
        if self.folder.is_file():
            raise TutelageError(
                f"{self.folder}, where the teacher's outputs are to be cached, is a file; name a folder"
            )
        self.hits = self.misses = 0
        remove_abandoned(self.folder, lambda name: _NAME.match(name) is not None)
        index = data.train.index.cpu().numpy()
        self._rows = int(max(int(part.index.max()) for part in (data.train, data.validation) if part is not None)) + 1
        self._codes = np.zeros(self._rows, CODE)
        codes = _codes(data)
        self._codes[index] = codes
        if (other := self._codes[index] != codes).any():
            raise TutelageError(
                f"{int(other.sum())} training samples of {data.name} share their number in index with another image, "
                f"first number {int(index[other.argmax()])}; give each image a number of its own, or train without "
                "answers="
            )
        self._open: dict[tuple[int, str, str], _File] = {}
        self._maps: set[tuple[int, str]] = set()
        self._fingerprints: dict[int, str] = {}

    def __call__(self, teacher: Tapped, batch: Batch, roles: Collection[str]) -> Outputs:
        """The teacher's answers for a batch of the training part, those that are not there yet computed now.

        The teacher is to be in eval mode. A batch that is none of the augmentations is not looked up.
        """
        if batch.key is None or not roles or any((id(teacher), role) in self._maps for role in roles):
            return teacher.tap(batch.inputs, roles)
        rows, views = batch.key.numpy().T
        passes = "bfloat16" if torch.is_autocast_enabled(batch.inputs.device.type) else "float32"
        files = {role: self._open.get((id(teacher), role, passes)) for role in roles}
        found = {role: file.read(rows, views) for role, file in files.items() if file is not None}
        there = np.ones(len(rows), bool)
        for role in roles:
            there &= found[role].there if role in found else False
        if np.count_nonzero(~there) == 1:  # one by itself is rounded otherwise than in a batch, so ask for another too
            there[there.argmax()] = False
        self.hits += int(there.sum())
        self.misses += int((~there).sum())
        if there.all():
            return self._outputs({role: found[role].values for role in roles}, batch)
        missing = torch.from_numpy((~there).nonzero()[0])
        places = missing.to(batch.inputs.device)
        live = teacher.tap(batch.inputs[places] if there.any() else batch.inputs, roles)
        if maps := [role for role in roles if _is_map(role, live[role])]:
            self._maps |= {(id(teacher), role) for role in maps}
            return live  # whole, since nothing can have been there
        answers: dict[str, Tensor] = {}
        for role in roles:
            fresh = live[role].detach()
            file = files[role] or self._file(teacher, role, passes, fresh)
            file.write(rows[missing.numpy()], views[missing.numpy()], fresh)
            if role not in found:  # another process may have been here before
                found[role] = file.read(rows, views)
            answers[role] = found[role].values
            # As they are read later, rounded if they are kept so.
            answers[role][missing] = fresh.cpu().to(answers[role].dtype)
        return self._outputs(answers, batch)

    def _outputs(self, answers: dict[str, Tensor], batch: Batch) -> Outputs:
        moved = {role: _moved(value, batch.inputs.device).float() for role, value in answers.items()}
        return Outputs(moved.pop("logits", None), moved)

    def _file(self, teacher: Tapped, role: str, passes: str, example: Tensor) -> _File:
        """The file of a teacher's role, made if it is not there."""
        if id(teacher) not in self._fingerprints:
            self._fingerprints[id(teacher)] = fingerprint(teacher)
        told = {
            "teacher": self._fingerprints[id(teacher)],
            "role": role,
            "shape": list(example.shape[1:]),
            "precision": self.precision,
            "normalisation": [teacher.mean.flatten().tolist(), teacher.std.flatten().tolist()],
            "views": self.views.settings(),
            "passes": passes,
        }
        named = re.sub(r"[^\w.]+", "-", role).strip("-")
        path = self.folder / f"{told['teacher']}-{passes}-{named}-{self.precision}.answers"
        file = _File(path, told, self._rows, self.views.count, self._codes)
        self._open[id(teacher), role, passes] = file
        return file


def _is_map(role: str, values: Tensor) -> bool:
    """Whether a role is a whole map, which is too large to keep; logits of strings are (B, L, C) and are kept."""
    return values.ndim > 2 and role != "logits" and not isinstance(role, DerivedRole)


@dataclass(frozen=True, slots=True)
class _Found:
    """What a file has for a batch: which answers are there, (B,), and the answers, (B, ...); others are arbitrary."""

    there: NDArray[np.bool_]
    values: Tensor


def _moved(values: Tensor, device: torch.device) -> Tensor:
    """On the device, without waiting for what it is doing."""
    return (values.pin_memory() if device.type == "cuda" else values).to(device, non_blocking=True)


class _File:
    """One memory-mapped file: a header, and for each sample its code, and for each view a checksum and an answer."""

    def __init__(self, path: Path, told: dict[str, Any], rows: int, views: int, codes: NDArray[Any]) -> None:
        self.path = path
        self.shape, self.dtype = tuple(told["shape"]), getattr(torch, told["precision"])
        size = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize
        self.row = np.dtype([("code", CODE), ("sums", _SUM, (views,)), ("answers", "u1", (views, size))])
        header = _header(told)
        try:
            if not path.exists():
                _create(path, header)
            with path.open("r+b") as file:
                _check_header(path, file.read(_HEADER), told)
                _reserve(file.fileno(), _HEADER + rows * self.row.itemsize)
            length = path.stat().st_size - _HEADER
            self.memory = np.memmap(path, self.row, "r+", _HEADER, (length // self.row.itemsize,))
        except OSError as error:
            raise TutelageError(
                f"cannot keep the teacher's answers in {path}: {error.strerror or one_line(error)}; it needs "
                f"{(_HEADER + rows * self.row.itemsize) / 2**20:,.0f} MiB: free some space, keep fewer views or train "
                "without answers="
            ) from error
        self._claim(codes)
        # Odd factors, another one for each word: any single flipped bit changes the sum.
        words = -(-size // 4)
        self._factors = (2 * np.arange(words, dtype=_SUM) + _SUM.type(1)) * _SUM.type(2654435761)

    def _claim(self, codes: NDArray[Any]) -> None:
        """Check that the samples are those of the file, as far as they meet; tell it of the others."""
        own = codes != 0
        kept = self.memory["code"][: len(codes)]
        if (clash := own & (kept != 0) & (kept != codes)).any():
            raise TutelageError(
                f"{self.path} holds answers to other images: {int(clash.sum())} of {int(own.sum())} training samples "
                f"differ, first number {int(clash.argmax())}; choose another folder for answers="
            )
        new = own & (kept == 0)
        self.memory["code"][: len(codes)][new] = codes[new]

    def read(self, rows: NDArray[Any], views: NDArray[Any]) -> _Found:
        """The answers for these samples under these views."""
        content = np.ascontiguousarray(self.memory["answers"][rows, views])
        sums = self.memory["sums"][rows, views]
        there = (sums != 0) & (sums == self._sums(content, rows, views))
        values = torch.from_numpy(content).view(self.dtype) if content.size else torch.empty(len(rows), 0)
        return _Found(there, values.view(len(rows), *self.shape))

    def write(self, rows: NDArray[Any], views: NDArray[Any], answers: Tensor) -> None:
        """Keep these answers."""
        content = answers.cpu().to(self.dtype).contiguous().view(len(rows), -1).view(torch.uint8).numpy()
        self.memory["answers"][rows, views] = content
        self.memory["sums"][rows, views] = self._sums(content, rows, views)  # last: until then it is not there

    def _sums(self, content: NDArray[Any], rows: NDArray[Any], views: NDArray[Any]) -> NDArray[Any]:
        """A checksum of each answer, of its bytes and of where it belongs; never 0."""
        words = np.pad(content, ((0, 0), (0, -content.shape[1] % 4))).view(_SUM)
        place = rows * self.memory["sums"].shape[1] + views + 1
        # Modulo 2^32, as whole numbers of 32 bits are multiplied and added.
        sums: NDArray[Any] = words @ self._factors + place.astype(_SUM) * _SUM.type(0x9E3779B1) | _SUM.type(1)
        return sums


def _header(told: dict[str, Any]) -> bytes:
    text = json.dumps(told, sort_keys=True).encode()
    return (_MAGIC + struct.pack("<I", len(text)) + text).ljust(_HEADER, b"\0")


def _create(path: Path, header: bytes) -> None:
    """The file with its header, all at once; another process may have been quicker."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        publish(path, header, overwrite=False)


def _check_header(path: Path, header: bytes, told: dict[str, Any]) -> None:
    try:
        if not header.startswith(_MAGIC):
            raise ValueError("it does not begin as one")
        (length,) = struct.unpack_from("<I", header, len(_MAGIC))
        there = parse_json(header[len(_MAGIC) + 4 :][:length])
        if not isinstance(there, dict):
            raise TypeError("its header is no table")
    except (ValueError, TypeError, struct.error) as error:
        raise TutelageError(
            f"{path} is no file of a teacher's answers ({one_line(error)}); remove it, and they are computed anew"
        ) from error
    for name, value in told.items():
        if there.get(name) != value:
            raise TutelageError(
                f"{path} holds answers of another {name}: {there.get(name)!r}, not {value!r}; choose another folder "
                "for answers= or remove it"
            )


def _reserve(descriptor: int, length: int) -> None:
    """Make the file at least so long, with the space on the disk: a full disk is to be heard of now.

    Where it cannot be reserved it is only made longer. A file is never made shorter, others may be using it.
    """
    if os.fstat(descriptor).st_size >= length:
        return
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, length)
    else:
        os.truncate(descriptor, length)


def _codes(data: Data) -> NDArray[Any]:
    """A number for each training image, another one for another image: (N,) uint64, never 0."""
    codes = image_codes(data.train.inputs)
    if codes is None:
        raise TutelageError(
            f"the images of {data.name} are read as they are needed and are no files of their own, so that stored "
            "answers could not be told from those to other images; train without answers="
        )
    return codes
