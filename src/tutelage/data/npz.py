"""Plain arrays in one ``.npz`` file."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.data.data import Data, Split
from tutelage.data.views import Views
from tutelage.errors import TutelageError, one_line

Array = NDArray[Any]

WANTED = "train_images, train_labels, test_images, test_labels"
SPELLINGS = (("{}_images", "{}_labels"), ("x_{}", "y_{}"))
KEYED_AS = {"train": "train", "validation": "val", "test": "test"}
DAMAGE = (ValueError, EOFError, BadZipFile, zlib.error, NotImplementedError, MemoryError)
MOST_CLASSES = 100_000  # one stray label of 2,000,000,000 would otherwise mean as many class names


def load(file: Path) -> Data:
    """The arrays ``{train,val,test}_images`` and ``_labels``, or ``x_train``, ``y_train`` and so on.

    Images are (N, H, W) or (N, H, W, C) uint8; floats are taken if all lie in [0, 1], rounded to 256 levels,
    and the record says so. Labels are (N,) or (N, 1) integers, -1 for no label, or (N, C) floats whose rows
    are distributions. ``classes`` (C,) may name the classes. Where a file holds a part of a published set,
    ``{train,val,test}_index`` (N,) may tell each sample's number there, which becomes its ``index``. Nothing is
    ever unpickled.

    Raises:
        TutelageError: the file, a key or a value is not as above; the text names it.
    """
    parts: dict[str, Split] = {}
    rounded: list[str] = []
    with file.open("rb") as stream:
        archive = Archive(file, stream)
        for part, (image_key, label_key) in archive.parts().items():
            raw = archive.read(image_key)
            rounded += [image_key] if raw.dtype.kind == "f" else []
            images = _images(raw, f"{image_key} of {file}")
            split = Split.of(images, _labels(archive.read(label_key), f"{label_key} of {file}"))
            index_key = f"{KEYED_AS[part]}_index"
            if index_key in archive.keys:
                index = _index(archive.read(index_key), len(split), f"{index_key} of {file}")
                split = replace(split, index=index)
            parts[part] = split
        names = archive.read("classes") if "classes" in archive.keys else None
    _, height, _, channels = parts["train"].images.shape
    return Data(
        name=f"npz:{file}",
        classes=_classes(names, parts["train"].labels, file),
        **parts,
        views=Views(pad=height // 8, flip=channels == 3),
        record=({"source": "npz", "rounded_to_uint8": rounded},) if rounded else (),
    )


class Archive:
    """An open ``.npz`` whose troubles are told in one line."""

    def __init__(self, file: Path, stream: BinaryIO, wanted: str = WANTED) -> None:
        self.file, self.wanted = file, wanted
        try:
            archive = np.load(stream, allow_pickle=False)
        except DAMAGE as error:
            raise self._not_an_archive() from error
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise self._not_an_archive()
        self._archive = archive
        self.keys = list(archive.files)

    def _not_an_archive(self) -> TutelageError:
        return TutelageError(
            f"{self.file} is not a readable .npz archive of plain arrays; np.savez writes one ({self.wanted})"
        )

    @property
    def listed(self) -> str:
        """The keys, for an error."""
        return ", ".join(self.keys[:20]) + (", …" if len(self.keys) > 20 else "") if self.keys else "nothing"

    def parts(self) -> dict[str, tuple[str, str]]:
        """The keys of every part's images and labels."""
        found = {part: pair for part, key in KEYED_AS.items() if (pair := self._pair(key)) is not None}
        for part in ("train", "test"):
            if part not in found:
                raise TutelageError(
                    f"{self.file} has no {part} part; add {part}_images and {part}_labels to {self.listed}"
                )
        return found

    def _pair(self, part: str) -> tuple[str, str] | None:
        """The keys of one part in whichever spelling is there."""
        for images, labels in ((a.format(part), b.format(part)) for a, b in SPELLINGS):
            present = [key for key in (images, labels) if key in self.keys]
            if len(present) == 2:
                return images, labels
            if present:
                (missing,) = {images, labels} - set(present)
                raise TutelageError(f"{self.file} has {present[0]} without {missing}; add it (it has: {self.listed})")
        return None

    def read(self, key: str) -> Array:
        """One array."""
        try:
            array: object = self._archive[key]
        except (*DAMAGE, OSError) as error:
            raise TutelageError(
                f"{key} of {self.file} cannot be read ({one_line(error)}); save it again as plain numbers or "
                "text, not as Python objects"
            ) from error
        if not isinstance(array, np.ndarray):
            raise TutelageError(f"{key} of {self.file} is not an array; np.savez writes them")
        return array


def _images(array: Array, what: str) -> Tensor:
    """(N, H, W) or (N, H, W, C), uint8 or float in [0, 1], to (N, H, W, C) uint8."""
    if array.ndim == 4 and array.shape[1] in (1, 3) and array.shape[3] not in (1, 3):
        raise TutelageError(
            f"{what} has shape {array.shape}, which looks like channels first; "
            "save it as (N, H, W, C) with .transpose(0, 2, 3, 1)"
        )
    if array.ndim not in (3, 4) or 0 in array.shape[1:]:
        raise TutelageError(f"{what} has shape {array.shape}; images are (N, H, W) or (N, H, W, C)")
    if array.dtype.kind == "f":
        _refuse(
            ~((array >= 0) & (array <= 1)),
            array,
            what,
            "float images lie in [0, 1]; divide by 255 or save uint8",
        )
        array = np.rint(array * np.float32(255)).astype(np.uint8)
    if array.dtype != np.uint8:
        raise TutelageError(f"{what} is {array.dtype}; images are uint8 from 0 to 255, or floats in [0, 1]")
    array = array if array.ndim == 4 else array[..., None]
    return torch.from_numpy(np.ascontiguousarray(array))


def _labels(array: Array, what: str) -> Tensor:
    """(N,) or (N, 1) integers to (N,) int64; (N, C) floats, each row a distribution, to (N, C) float32."""
    soft = array.dtype.kind == "f" and array.ndim == 2 and array.shape[1] > 1
    if soft:
        return _soft_labels(array, what)
    if array.dtype.kind not in "iu" or array.ndim not in (1, 2) or array.shape[1:] not in ((), (1,)):
        raise TutelageError(
            f"{what} is {array.dtype} of shape {array.shape}; labels are (N,) integers or (N, C) floats"
        )
    array = array.reshape(-1)
    _refuse(array < -1, array, what, "labels are 0 or more, or -1 for no label")
    _refuse(array >= MOST_CLASSES, array, what, f"labels are class numbers below {MOST_CLASSES}")
    return torch.from_numpy(array.astype(np.int64))


def _soft_labels(array: Array, what: str) -> Tensor:
    _refuse(~((array >= 0) & (array <= np.inf)), array, what, "soft labels are probabilities, 0 or more")
    sums = array.sum(1, dtype=np.float64)
    _refuse(
        ~(np.abs(sums - 1) <= 1e-3),
        sums,
        f"the sum over classes in {what}",
        "every row of soft labels sums to 1",
    )
    return torch.from_numpy(array.astype(np.float32))


def _index(array: Array, samples: int, what: str) -> Tensor:
    """(N,) different numbers of samples, 0 or more, to (N,) int64."""
    if array.dtype.kind not in "iu" or array.shape != (samples,):
        raise TutelageError(f"{what} is {array.dtype} of shape {array.shape}; an index is ({samples},) integers")
    _refuse(array < 0, array, what, "numbers of samples are 0 or more")
    array = array.astype(np.int64)
    first = np.zeros(samples, np.bool_)
    first[np.unique(array, return_index=True)[1]] = True
    _refuse(~first, array, what, "each sample has a number of its own")
    return torch.from_numpy(array)


def _refuse(bad: NDArray[np.bool_], values: Array, what: str, rule: str) -> None:
    """Refuse the first bad value, with its place."""
    if bad.any():
        place = np.unravel_index(int(bad.argmax()), bad.shape)
        where = ", ".join(str(int(i)) for i in place)
        raise TutelageError(f"{what} is {values[place]} at [{where}] ({int(bad.sum())} like it); {rule}")


def _classes(names: Array | None, labels: Tensor, file: Path) -> tuple[str, ...]:
    """The class names, or the class numbers of the training labels as names."""
    if names is not None:
        if names.ndim != 1 or names.dtype.kind not in "USiu":
            raise TutelageError(f"classes of {file} is {names.dtype} of shape {names.shape}; it is (C,) names as text")
        return tuple(name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in names.tolist())
    count = labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1 if len(labels) else 0
    if count == 0:
        raise TutelageError(
            f"the train part of {file} has no label at all; label some samples or add the array classes"
        )
    return tuple(str(c) for c in range(count))
