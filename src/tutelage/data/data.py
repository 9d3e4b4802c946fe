"""A data set: its splits, and the record of the conditions applied to it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.data.modality import MeanStd, Modality, Pixels
from tutelage.data.split import Split, checked, split_from_arrays
from tutelage.data.stratified import division, split_off_test
from tutelage.data.targets import Classes, Targets
from tutelage.data.views import Views
from tutelage.errors import TutelageError
from tutelage.parsing import check_plain

__all__ = ["ArrayLike", "Data", "Split", "default_class_names"]

ArrayLike = Tensor | NDArray[Any]


@dataclass(frozen=True, eq=False, repr=False)
class Data:
    """A data set: class names, splits, augmentation and record.

    Arrays are checked like those of files: NumPy arrays become tensors, integer labels int64, and float images in
    [0, 1] uint8 (noted in the record).

    Attributes:
        name: the name it was opened by, for example ``"digits"``.
        classes: the class names, in the order of the class numbers; for other targets the names of the labels,
            quantities or symbols. Empty if no sample has a label and no names are given: a run then uses the classes
            of its teacher.
        train, validation, test: the splits; ``validation`` is held out from the training split, or ``None``.
        views: the augmentation of training inputs; none by default.
        record: what was applied to the data, in order, as plain JSON values, for example realised noise rates.
        files: the names of the training split's files as it was loaded, by ``Split.index``, or its texts; or empty.
        test_files: the same for the test split.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    validation: Split | None = None
    views: Views = None  # type: ignore[assignment]  # set to the modality's own below
    record: tuple[Mapping[str, Any], ...] = ()
    files: tuple[str, ...] = ()
    test_files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = tuple(str(name) for name in self.classes)
        for name in (self.name, *names):
            try:
                check_plain(name)
            except ValueError as error:  # from file names that are not UTF-8
                raise TutelageError(
                    f"{self.name}: the name {name!r:.80} cannot be stored: {error}; rename it"
                ) from None
        if duplicates := [name for name, count in Counter(names).items() if count > 1]:
            numbers = ", ".join(str(number) for number, name in enumerate(names) if name == duplicates[0])
            raise TutelageError(
                f"{self.name} has the class name {duplicates[0]!r:.80} more than once (classes {numbers}); "
                "give each class its own name"
            )
        splits = {**self.splits, "train": self.train, "test": self.test}
        stored_splits = {
            split_name: checked(split, f"{split_name} split of {self.name}", names)
            for split_name, split in splits.items()
        }
        shapes = {tuple(split.inputs.shape[1:]) for split in stored_splits.values()}
        if len(shapes) > 1:
            raise TutelageError(f"the splits of {self.name} have images of different shapes: {sorted(shapes)}")
        kinds = {(split.modality, split.targets) for split in stored_splits.values()}
        if len(kinds) > 1:
            raise TutelageError(f"the splits of {self.name} are of different kinds: {', '.join(map(str, kinds))}")
        inputs = {split_name: split.inputs for split_name, split in splits.items()}
        record = (*self.record, *_changes(stored_splits["train"].modality, inputs))
        views = stored_splits["train"].modality.unaugmented if self.views is None else self.views
        for field, value in {"classes": names, "views": views, "record": record, **stored_splits}.items():
            object.__setattr__(self, field, value)

    @classmethod
    def from_arrays(
        cls,
        train: tuple[ArrayLike, ArrayLike | None],
        test: tuple[ArrayLike, ArrayLike | None] | None = None,
        validation: tuple[ArrayLike, ArrayLike | None] | None = None,
        *,
        classes: Sequence[str] | None = None,
        name: str = "arrays",
        views: Views | None = None,
        test_share: float | None = None,
        modality: Modality = Pixels(),  # noqa: B008 - a frozen value
        targets: Targets = Classes(),  # noqa: B008 - a frozen value
    ) -> Data:
        """A data set from pairs of inputs and labels, NumPy arrays or tensors.

        Args:
            train, test, validation: images, (N, H, W) or (N, H, W, C), uint8 or floats in [0, 1]; and labels, (N,)
                integers, -1 for none, or (N, C) distributions, or ``None`` where no sample has a label. Or what
                ``modality`` and ``targets`` say.
            classes: their names; by default the numbers up to the largest training label, or where the training split
                has no label, up to the largest one of another split.
            name: what messages and records call it.
            views: the augmentation; by default crops, and flips of coloured images.
            modality: what the inputs are.
            targets: what the labels are.
            test_share: where there is no ``test``, how much of each class becomes the test split; by default 0.2, and a
                warning says so.

        Raises:
            TutelageError: an array is not as above; the text names it.
        """
        pairs = {"train": train, "validation": validation, "test": test}
        present = {split_name: pair for split_name, pair in pairs.items() if pair is not None}
        splits = {
            split_name: split_from_arrays(pair, f"{split_name} split of {name}", modality, targets)
            for split_name, pair in present.items()
        }
        names = default_class_names(splits, name) if classes is None else tuple(classes)
        record: list[dict[str, Any]] = _changes(modality, {split_name: pair[0] for split_name, pair in present.items()})
        if test is None:
            splits["train"], splits["test"], entry = split_off_test(splits["train"], test_share, name)
            record.append(entry)
        elif test_share is not None:
            raise TutelageError(f"{name} has a test split already; leave out the test share of {test_share}")
        train_split = splits["train"]
        return cls(
            name,
            names,
            train_split,
            splits["test"],
            splits.get("validation"),
            views=modality.augmented(tuple(train_split.inputs.shape[1:])) if views is None else views,
            record=tuple(record),
        )

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(split)} {split_name}" for split_name, split in self.splits.items())
        inputs = f"{self.modality.noun} {self.input_shape}"
        count, noun = self.num_classes, self.targets.noun
        labels = f"{count} {noun}" if self.targets.single_label else f"{noun} ({count})"
        return f"Data({self.name!r}, {labels}, {sizes}, {inputs})"

    def with_class_names(self, classes: Sequence[str]) -> Data:
        """The same data with these class names, unless it has names."""
        return self if self.classes else replace(self, classes=tuple(classes))

    @property
    def splits(self) -> dict[str, Split]:
        """The splits that exist, by name."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in splits.items() if split is not None}

    @property
    def num_classes(self) -> int:
        """The number of classes, labels, quantities or symbols, which is the number of a network's outputs."""
        return len(self.classes)

    @property
    def modality(self) -> Modality:
        """The kind of the inputs."""
        return self.train.modality

    @property
    def targets(self) -> Targets:
        """The kind of the labels."""
        return self.train.targets

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one network input: (C, H, W) for images."""
        return self.modality.input_shape(tuple(self.train.inputs.shape[1:]))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of network inputs.

        Raises:
            TutelageError: the inputs are not images.
        """
        if len(self.input_shape) != 3:
            raise TutelageError(f"this needs images, and the inputs of {self.name} are {self.modality.noun}")
        channels, height, width = self.input_shape
        return channels, height, width

    @cached_property
    def mean_std(self) -> MeanStd:
        """Mean and standard deviation for normalisation; for images by channel, of pixels in [0, 1], both (C,).

        Computed from all training samples in memory, or from 10,000 of them, drawn with a fixed seed, if in files.
        A constant channel has a standard deviation of 1.
        """
        images = self.train.inputs
        if not isinstance(images, Tensor):
            sampled = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(0))[:10_000]
            chunks = torch.split(sampled, 256)
        else:
            chunks = torch.split(torch.arange(len(self.train)), 4096)
        return self.modality.mean_std(images[indices] for indices in chunks)

    def hold_out(self, fraction: float, seed: int = 0) -> Data:
        """Move a fraction of the training split to ``validation``, stratified by class, unless there is one.

        Every class keeps at least one training sample. Samples in groups, such as the frames of a video, are moved by
        whole groups, and one group stays. If no sample has a label, nothing is held out, since it could not be used for
        selection.
        """
        if self.validation is not None or fraction == 0:
            return self
        if not 0 < fraction < 1:
            raise TutelageError(f"the held-out fraction must lie in [0, 1), got {fraction}")
        if not bool(self.targets.labelled(self.train.labels).any()):
            return self
        labels = self.train.labels
        size = round(fraction * len(labels))
        if size == len(labels):
            raise TutelageError(f"holding out {fraction} of {size} samples leaves none to train on; hold out less")
        remaining, held_out = division(self.targets, labels, size, seed) if size else ((), ())
        if len(held_out) == 0:
            return self
        return replace(
            self,
            train=self.train.subset(torch.from_numpy(remaining)),
            validation=self.train.subset(torch.from_numpy(held_out)),
            record=(*self.record, {"hold_out": fraction, "seed": seed, "samples": len(held_out)}),
        )

    @property
    def fingerprint(self) -> str:
        """Thirty-two hexadecimal digits; two data sets with the same ones give the same runs.

        The first sixteen are those of the training split's images and labels (``Split.fingerprint``). The others cover
        the class names, the augmentation, the other splits, and each sample's index, clean label and trust.
        """
        digest = hashlib.sha256(json.dumps([self.classes, self.views.settings(), self.input_shape]).encode())
        for split_name, split in self.splits.items():
            digest.update(f"{split_name} {'' if split_name == 'train' else split.fingerprint}".encode())
            for values in (split.index, split.clean_labels, split.trusted):
                digest.update(b"none" if values is None else values.cpu().numpy().data)
        return self.train.fingerprint + digest.hexdigest()[:16]

    def summary(self) -> dict[str, Any]:
        """Classes, counts, image shape, statistics and record as plain JSON values."""
        mean, std = self.mean_std
        return {
            "name": self.name,
            "classes": list(self.classes),
            "counts": {
                split_name: split.targets.counts(split.labels, self.classes)
                for split_name, split in self.splits.items()
            },
            "samples": {split_name: len(split) for split_name, split in self.splits.items()},
            "noise_rate": {split_name: split.noise_rate for split_name, split in self.splits.items()},
            "image_shape": list(self.input_shape),
            "sample": self.modality.sample,
            "mean": list(mean),
            "std": list(std),
            "views": self.views.settings() | {"count": self.views.count},
            "record": [dict(entry) for entry in self.record],
        }


def default_class_names(splits: Mapping[str, Split], what: str) -> tuple[str, ...]:
    """Class numbers as class names, counted from the training labels or, if there are none, from the other splits.

    Raises:
        TutelageError: no sample has a label, and the targets are not classes, whose number a teacher could give.
    """
    sizes = {name: split.targets.num_classes(split.labels) for name, split in splits.items()}
    count = sizes["train"] or max(sizes.values())
    if count == 0 and not splits["train"].targets.single_label:
        raise TutelageError(f"the train split of {what} has no label at all; label some samples or name the symbols")
    return tuple(str(number) for number in range(count))


def _changes(modality: Modality, inputs: Mapping[str, object]) -> list[dict[str, Any]]:
    """Conversions that storing these inputs applies, for the record: the names of splits by conversion."""
    changes: dict[str, list[str]] = {}
    for split_name, values in inputs.items():
        if change := modality.conversion(values):
            changes.setdefault(change, []).append(split_name)
    return [{change: changed} for change, changed in changes.items()]
