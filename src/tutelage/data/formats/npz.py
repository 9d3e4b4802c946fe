"""Plain arrays in one ``.npz`` file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

from tutelage.data.arrays import Array, as_index, check_unique
from tutelage.data.batch import UNLABELLED
from tutelage.data.data import Data, Split, default_class_names
from tutelage.data.formats.infer import infer_modality, infer_targets, targets_named
from tutelage.data.memory import check_unpacked
from tutelage.data.npy import DAMAGE, read_npy
from tutelage.data.targets import Classes
from tutelage.errors import TutelageError, one_line

EXPECTED_KEYS = "train_images, train_labels, test_images, test_labels"
SPELLINGS = (("{}_images", "{}_labels"), ("x_{}", "y_{}"))
KEYED_AS = {"train": "train", "validation": "val", "test": "test"}
NOVEL = "novel"  # a test split whose classes do not occur in training
INDEX = {split: f"{key}_index" for split, key in KEYED_AS.items()}
TARGETS = "targets"


def load(file: Path) -> Data:
    """The arrays ``{train,val,test}_images`` and ``_labels``, or ``x_train``, ``y_train`` and so on.

    The dtype and the shape of the training split's arrays tell what they are:

    ======================================================== =========================================================
    inputs                                                   what they are
    ======================================================== =========================================================
    (N, H, W) or (N, H, W, C) uint8, or floats in [0, 1]     images; floats are rounded to 256 levels, and the record
                                                             says so
    (N, D) floats                                            vectors
    ======================================================== =========================================================

    ======================================================== =========================================================
    labels                                                   what they are
    ======================================================== =========================================================
    (N,) or (N, 1) integers, -1 for no label                 classes
    (N, C) floats, of which most rows sum to 1               distributions over classes
    (N, C) of 0, 1 and, in integers, -1 for unknown          several labels a sample
    (N,) or (N, K) floats, NaN for unknown                   quantities
    ======================================================== =========================================================

    Ambiguous labels are refused: floats that are whole numbers, one-hot integers, other integers in columns. For those,
    add the entry ``targets`` with the name of the task: ``"classification"``, ``"multi_label"``, ``"regression"`` or
    ``"strings"``. Classes that are ordered grades need ``"ordinal"``. The labels of the training split, or of all
    splits, are optional. ``classes`` (C,) may name the classes, labels or quantities. ``novel_images`` and
    ``novel_labels`` replace the test split by one whose classes do not occur in training, for tasks that evaluate on
    new classes. If the file is a subset of a published set, ``{train,val,test}_index`` (N,) may hold each sample's
    number there, which becomes its ``index``. Nothing is ever unpickled.

    Raises:
        TutelageError: the file, a key or a value is not as above; the text names it.
    """
    with file.open("rb") as stream:
        archive = Archive(file, stream)
        keys = archive.split_keys()
        inputs = {split: archive.read(key) for split, (key, _) in keys.items()}
        labels = {split: None if key is None else archive.read(key) for split, (_, key) in keys.items()}
        index_keys = INDEX | ({"test": f"{NOVEL}_index"} if archive.novel else {})
        others = {key: archive.read(key) for key in (*index_keys.values(), "classes", TARGETS) if key in archive.keys}
    modality = infer_modality(inputs["train"], f"{keys['train'][0]} of {file}")
    if TARGETS in others:
        targets = targets_named(others[TARGETS], f"{TARGETS} of {file}")
    else:
        targets = (
            Classes() if labels["train"] is None else infer_targets(labels["train"], f"{keys['train'][1]} of {file}")
        )
    splits: dict[str, Split] = {}
    for split_name, (input_key, label_key) in keys.items():
        stored = modality.store(inputs[split_name], f"{input_key} of {file}")
        values = labels[split_name] if label_key is not None else targets.unlabelled(len(stored))
        split = Split.of(stored, targets.store(values, f"{label_key} of {file}"), modality, targets)
        if (key := index_keys[split_name]) in others:
            index = as_index(others[key], len(split), f"{key} of {file}")
            check_unique(index, f"{key} of {file}")
            split = replace(split, index=index)
        splits[split_name] = split
    if archive.novel:
        _check_novel(splits, file)
    rounded = [key for split, (key, _) in keys.items() if modality.conversion(inputs[split])]
    return Data(
        name=f"npz:{file}",
        classes=_classes(others.get("classes"), splits, file, novel=archive.novel),
        train=splits["train"],
        test=splits["test"],
        validation=splits.get("validation"),
        views=modality.augmented(tuple(splits["train"].inputs.shape[1:])),
        record=({"source": "npz", "rounded_to_uint8": rounded},) if rounded else (),
    )


class Archive:
    """An open ``.npz`` file; reading errors become one-line messages."""

    def __init__(self, file: Path, stream: BinaryIO, expected: str = EXPECTED_KEYS) -> None:
        self.file = file
        try:
            self._archive = ZipFile(stream)
        except (*DAMAGE, OSError) as error:
            raise TutelageError(
                f"{file} is not a readable .npz archive of plain arrays; np.savez writes one ({expected})"
            ) from error
        self._members = {member.filename.removesuffix(".npy"): member for member in self._archive.infolist()}
        self.keys = list(self._members)

    @property
    def listed(self) -> str:
        """The keys, for an error message."""
        return ", ".join(self.keys[:20]) + (", …" if len(self.keys) > 20 else "") if self.keys else "nothing"

    @property
    def novel(self) -> bool:
        """Whether the test classes do not occur in training."""
        return self._pair(NOVEL) is not None

    def split_keys(self) -> dict[str, tuple[str, str | None]]:
        """The keys of the inputs and labels of each split; the training split, or all splits, may lack labels."""
        keys = {split: pair for split, prefix in KEYED_AS.items() if (pair := self._pair(prefix)) is not None}
        if (pair := self._pair(NOVEL)) is not None:
            if "test" in keys:
                raise TutelageError(f"{self.file} has {keys['test'][0]} and {pair[0]}; keep one of them")
            keys["test"] = pair
        for split in ("train", "test"):
            if split not in keys:
                raise TutelageError(
                    f"{self.file} has no {split} split; add {split}_images and {split}_labels to {self.listed}"
                )
        for inputs, labels in keys.values():
            # An unknown key may be a misspelt key of labels.
            if labels is None and (keys["train"][1] is not None or self._unknown_keys()):
                missing = next(b for a, b in self._supported_pairs() if a == inputs)
                raise TutelageError(f"{self.file} has {inputs} without {missing}; add it (it has: {self.listed})")
        return keys

    def _pair(self, prefix: str) -> tuple[str, str | None] | None:
        """The keys of one split, in the spelling that the file uses."""
        for inputs, labels in ((a.format(prefix), b.format(prefix)) for a, b in SPELLINGS):
            if inputs in self.keys:
                return inputs, labels if labels in self.keys else None
            if labels in self.keys:
                raise TutelageError(f"{self.file} has {labels} without {inputs}; add it (it has: {self.listed})")
        return None

    def _supported_pairs(self) -> list[tuple[str, str]]:
        """The keys of inputs and labels that any split can have."""
        return [(a.format(prefix), b.format(prefix)) for a, b in SPELLINGS for prefix in (*KEYED_AS.values(), NOVEL)]

    def _unknown_keys(self) -> set[str]:
        """Keys without a meaning here."""
        supported = {"classes", TARGETS, *INDEX.values(), f"{NOVEL}_index"}
        return set(self.keys) - supported - {key for pair in self._supported_pairs() for key in pair}

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


def _check_novel(splits: Mapping[str, Split], file: Path) -> None:
    """Refuse a novel split that shares a class with the training split."""
    trained, novel = (set(splits[split].targets.classes(splits[split].labels).tolist()) for split in ("train", "test"))
    if shared := sorted((trained & novel) - {UNLABELLED}):
        raise TutelageError(
            f"{NOVEL}_labels of {file} have the class {shared[0]}, which train_labels have too; number the novel "
            f"classes from {max(trained) + 1}, or call the split test if its classes occur in training"
        )


def _classes(names: Array | None, splits: Mapping[str, Split], file: Path, *, novel: bool = False) -> tuple[str, ...]:
    """The class names; by default the class numbers of the training labels, or of all labels with a novel split."""
    if names is not None:
        if names.ndim != 1 or names.dtype.kind not in "USiu":
            raise TutelageError(f"classes of {file} is {names.dtype} of shape {names.shape}; it is (C,) names as text")
        return tuple(name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in names.tolist())
    if novel:
        return tuple(
            str(number) for number in range(max(split.targets.num_classes(split.labels) for split in splits.values()))
        )
    return default_class_names(splits, str(file))
