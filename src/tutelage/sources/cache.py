"""Cached outputs of frozen teachers: each view of each sample goes through the teacher once.

An entry is found by the teacher's weights, the sample and the number of its view (crop and flip). Before an entry is
used, the header of the file is compared with the teacher and the augmentation, and the images with those of the file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.data.data import Data
from tutelage.data.images import HASH_DTYPE, image_hashes
from tutelage.errors import TutelageError
from tutelage.files import as_path, remove_abandoned
from tutelage.models.derived_role import DerivedRole
from tutelage.models.fingerprint import fingerprint
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.sources.cache_file import CacheFile

Precision = Literal["float32", "float16", "bfloat16"]

MOST_VIEWS = 2**16
"""An augmentation with more views hardly ever shows one of them again, and its files would fill the disk."""

LARGEST_MAP_FILE = 4 * 2**30
"""The largest file, in bytes, that is created for a whole feature map."""

_NAME = re.compile(r"[0-9a-f]{16}-(\d+x\d+-)?(float32|bfloat16|float16)-")  # the beginning of a cache file's name


class TeacherCache:
    """The outputs of frozen networks for the views of a data set's training samples, in a folder.

    There is one memory-mapped file per teacher, size to which it resizes images (if it does), role (``logits``,
    ``embedding``, a derived role) and autocast precision of the teacher: one row per sample, with one entry per view.
    Batches fill it during training; every epoch, method, seed and process with the same teacher reads it. Any number of
    processes may write at once: an entry is valid only if its checksum matches, so one that was interrupted or damaged
    is computed again.

    With float32 an entry is bit-identical to the computed output; half precision halves the file and rounds.
    Vectors (logits, embeddings) and derived roles (attention, flow) are always cached. A whole feature map, which hints
    and similarities read, is cached if its file is at most ``LARGEST_MAP_FILE``; otherwise the teacher runs. With few
    views it is (the last stage of a ResNet-56 for CIFAR-10 in four views: 1.5 GiB in bfloat16), with all 162 it would
    need a terabyte.

    A sample needs 8 bytes, and each of its views 4 bytes and the size of the output; the whole file is allocated when
    it is created. In float32, attention needs 4 H W bytes per stage and view: 5,376 for the three of a wide ResNet
    (32x32, 16x16 and 8x8). The flow matrix between m and n channels needs 4 m n: 11,264 for the three of a ResNet-20
    (16, 16, 32 and 64 channels), 43,008 for those of a WRN-d-2.

    Args:
        folder: the folder of the files; created if it does not exist.
        data: the data set whose training split is cached. Images in memory are identified by their pixels, image files
            by name, size and modification time: a copy counts as the same image only if it keeps the time.
        precision: the data type of the entries.

    Attributes:
        hits, misses: how many entries were read, and how many had to be computed, so far.

    Raises:
        TutelageError: the folder is a file, there are more views than anybody can cache, images cannot be identified,
            or two images have the same ``index``.
    """

    def __init__(self, folder: str | os.PathLike[str], data: Data, precision: Precision = "float32") -> None:
        self.folder, self.views, self.precision = as_path(folder), data.views, precision
        if self.folder.is_file():
            raise TutelageError(
                f"{self.folder}, where the teacher's outputs are to be cached, is a file; name a folder"
            )
        if data.views.count > MOST_VIEWS:
            raise TutelageError(
                f"the augmentation of {data.name} has {data.views.count:,} views of each sample, so that cached "
                "teacher outputs would hardly ever be read; limit them, for example to 16 (--views 16, views=16), or "
                "train without teacher_cache="
            )
        self.hits = self.misses = 0
        remove_abandoned(self.folder, lambda name: _NAME.match(name) is not None)
        index = data.train.index.cpu().numpy()
        self._rows = (
            int(max(int(split.index.max()) for split in (data.train, data.validation) if split is not None)) + 1
        )
        self._codes = np.zeros(self._rows, HASH_DTYPE)
        codes = _codes(data)
        self._codes[index] = codes
        if (clash := self._codes[index] != codes).any():
            raise TutelageError(
                f"{int(clash.sum())} training samples of {data.name} share their index with another image, the first "
                f"is index {int(index[clash.argmax()])}; give each image an index of its own, or train without "
                "teacher_cache="
            )
        self._files: dict[tuple[int, str, str], CacheFile] = {}
        self._too_large: set[tuple[int, str]] = set()
        self._fingerprints: dict[int, str] = {}

    def __call__(self, teacher: Tapped, batch: Batch, roles: Collection[str]) -> Outputs:
        """The teacher's outputs for a batch of the training split; missing entries are computed and cached.

        The teacher must be in eval mode. If the batch is none of the numbered views, the cache is not used.
        """
        if batch.key is None or not roles or any((id(teacher), role) in self._too_large for role in roles):
            return teacher.tap(batch.inputs, roles)
        rows, views = batch.key.numpy().T
        device_type = batch.inputs.device.type
        dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else torch.float32
        autocast = str(dtype).removeprefix("torch.")
        files = {role: self._files.get((id(teacher), role, autocast)) for role in roles}
        entries = {role: file.read(rows, views) for role, file in files.items() if file is not None}
        valid = np.ones(len(rows), bool)
        for role in roles:
            valid &= entries[role].valid if role in entries else False
        if np.count_nonzero(~valid) == 1:  # a batch of one sample is rounded differently, so compute a second one too
            valid[valid.argmax()] = False
        self.hits += int(valid.sum())
        self.misses += int((~valid).sum())
        if valid.all():
            return self._outputs({role: entries[role].values for role in roles}, batch)
        missing = torch.from_numpy((~valid).nonzero()[0])
        inputs = batch.inputs[missing.to(batch.inputs.device)] if valid.any() else batch.inputs
        computed = teacher.tap(inputs, roles)
        if too_large := [role for role in roles if self._is_too_large(role, computed[role])]:
            self._too_large |= {(id(teacher), role) for role in too_large}
            return computed  # for the whole batch, since these roles have no entries
        outputs: dict[str, Tensor] = {}
        for role in roles:
            values = computed[role].detach()
            file = files[role] or self._file(teacher, role, autocast, values)
            file.write(rows[missing.numpy()], views[missing.numpy()], values)
            if role not in entries:  # another process may have written some of them
                entries[role] = file.read(rows, views)
            outputs[role] = entries[role].values
            outputs[role][missing] = values.cpu().to(outputs[role].dtype)  # rounded as a later read will return them
        return self._outputs(outputs, batch)

    def _is_too_large(self, role: str, values: Tensor) -> bool:
        """Whether a role is a whole feature map with too large a file. Logits of strings (B, L, C) are no map."""
        if values.ndim <= 2 or role == "logits" or isinstance(role, DerivedRole):
            return False
        entry = values[0].numel() * int(getattr(torch, self.precision).itemsize)
        return self._rows * self.views.count * entry > LARGEST_MAP_FILE

    def _outputs(self, values: dict[str, Tensor], batch: Batch) -> Outputs:
        moved = {role: _to_device(value, batch.inputs.device).float() for role, value in values.items()}
        return Outputs(moved.pop("logits", None), moved)

    def _file(self, teacher: Tapped, role: str, autocast: str, example: Tensor) -> CacheFile:
        """Open or create the file of one role of a teacher."""
        if id(teacher) not in self._fingerprints:
            self._fingerprints[id(teacher)] = fingerprint(teacher)
        header = {
            "teacher": self._fingerprints[id(teacher)],
            "role": role,
            "shape": list(example.shape[1:]),
            "precision": self.precision,
            "normalisation": [teacher.mean.flatten().tolist(), teacher.std.flatten().tolist()],
            "views": self.views.settings(),
            "passes": autocast,
            "size": None if teacher.size is None else list(teacher.size),
        }
        size = "" if teacher.size is None else "{}x{}-".format(*teacher.size)
        role_name = re.sub(r"[^\w.]+", "-", role).strip("-")
        path = self.folder / f"{header['teacher']}-{size}{autocast}-{role_name}-{self.precision}.outputs"
        file = CacheFile(path, header, self._rows, self.views.count, self._codes)
        self._files[id(teacher), role, autocast] = file
        return file


def _to_device(values: Tensor, device: torch.device) -> Tensor:
    """Move to the device without synchronizing with it."""
    return (values.pin_memory() if device.type == "cuda" else values).to(device, non_blocking=True)


def _codes(data: Data) -> NDArray[Any]:
    """A hash of each training image: (N,) uint64, never 0."""
    codes = image_hashes(data.train.inputs)
    if codes is None:
        raise TutelageError(
            f"the images of {data.name} are read on demand and are no files of their own, so a cache could not detect "
            "that they changed; train without teacher_cache="
        )
    return codes
