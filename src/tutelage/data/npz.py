"""Plain arrays in one ``.npz`` file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

from tutelage.data.arrays import Array, as_images, as_index, as_labels, check_unique
from tutelage.data.data import Data, Split, numbered_names
from tutelage.data.memory import check_unpacked
from tutelage.data.npy import DAMAGE, read_npy
from tutelage.data.views import CropsAndFlips
from tutelage.errors import TutelageError, one_line

WANTED = "train_images, train_labels, test_images, test_labels"
SPELLINGS = (("{}_images", "{}_labels"), ("x_{}", "y_{}"))
KEYED_AS = {"train": "train", "validation": "val", "test": "test"}


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
            images = as_images(raw, f"{image_key} of {file}")
            split = Split.of(images, as_labels(archive.read(label_key), f"{label_key} of {file}"))
            index_key = f"{KEYED_AS[part]}_index"
            if index_key in archive.keys:
                index = as_index(archive.read(index_key), len(split), f"{index_key} of {file}")
                check_unique(index, f"{index_key} of {file}")
                split = replace(split, index=index)
            parts[part] = split
        names = archive.read("classes") if "classes" in archive.keys else None
    _, height, _, channels = parts["train"].inputs.shape
    return Data(
        name=f"npz:{file}",
        classes=_classes(names, parts, file),
        **parts,
        views=CropsAndFlips(pad=height // 8, flip=channels == 3),
        record=({"source": "npz", "rounded_to_uint8": rounded},) if rounded else (),
    )


class Archive:
    """An open ``.npz`` whose troubles are told in one line."""

    def __init__(self, file: Path, stream: BinaryIO, wanted: str = WANTED) -> None:
        self.file = file
        try:
            self._archive = ZipFile(stream)
        except (*DAMAGE, OSError) as error:
            raise TutelageError(
                f"{file} is not a readable .npz archive of plain arrays; np.savez writes one ({wanted})"
            ) from error
        self._members = {member.filename.removesuffix(".npy"): member for member in self._archive.infolist()}
        self.keys = list(self._members)

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
        member = self._members[key]
        if member.compress_type not in (ZIP_STORED, ZIP_DEFLATED):  # others unpack gigabytes at a time
            raise TutelageError(
                f"{key} of {self.file} is packed in a way that NumPy does not use (zip method {member.compress_type}); "
                "save it again with np.savez or np.savez_compressed"
            )
        stored = min(member.compress_size, self.file.stat().st_size)
        check_unpacked(member.file_size, stored, f"{key} of {self.file}")
        try:
            with self._archive.open(member) as stream:
                return read_npy(stream, member.file_size)
        except (*DAMAGE, OSError) as error:
            raise TutelageError(
                f"{key} of {self.file} cannot be read, or is not an array ({one_line(error)}); save it again with "
                "np.savez, as plain numbers or text, not as Python objects"
            ) from error


def _classes(names: Array | None, parts: Mapping[str, Split], file: Path) -> tuple[str, ...]:
    """The class names, or the class numbers of the labels as names."""
    if names is not None:
        if names.ndim != 1 or names.dtype.kind not in "USiu":
            raise TutelageError(f"classes of {file} is {names.dtype} of shape {names.shape}; it is (C,) names as text")
        return tuple(name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in names.tolist())
    return numbered_names(parts, str(file))
