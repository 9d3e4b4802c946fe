"""A data set: its splits, what its inputs look like, and what was done to it."""

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
from tutelage.data.stratified import split_off_test, stratified_split
from tutelage.data.targets import Classes, Targets
from tutelage.data.views import Views
from tutelage.errors import TutelageError
from tutelage.parsing import check_plain

__all__ = ["ArrayLike", "Data", "Split", "default_class_names"]

ArrayLike = Tensor | NDArray[Any]


@dataclass(frozen=True, eq=False, repr=False)
class Data:
    """A data set with its classes, its splits and the record of what was done to it.

    Arrays are checked as those of files are: NumPy arrays become tensors, other integers int64, and floats in [0, 1]
    uint8, which the record says.

    Attributes:
        name: what it was opened as, for instance ``"digits"``.
        classes: the class names, in the order of the class numbers; of other targets the names of the labels, the
            quantities or the symbols. None where no sample has a label and nobody has named them: a run takes those
            of its teacher.
        train, validation, test: the splits; ``validation`` is a held-out piece of the training split, or ``None``.
        views: the augmentation its training inputs are given; none unless given.
        record: what was done to it, in order, as plain JSON values (realised noise rates among them).
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    validation: Split | None = None
    views: Views = None  # type: ignore[assignment]  # set to the modality's own below
    record: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        names = tuple(str(name) for name in self.classes)
        for name in (self.name, *names):
            try:
                check_plain(name)
            except ValueError as error:  # of files whose names are in another encoding than UTF-8
                raise TutelageError(f"{self.name}: the name {name!r:.80} cannot be kept: {error}; rename it") from None
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            places = ", ".join(str(place) for place, name in enumerate(names) if name == twice[0])
            raise TutelageError(
                f"{self.name} has the class name {twice[0]!r:.80} more than once (classes {places}); "
                "give each class its own name"
            )
        given = {**self.splits, "train": self.train, "test": self.test}
        stored_splits = {part: checked(split, f"{part} split of {self.name}", names) for part, split in given.items()}
        shapes = {tuple(split.inputs.shape[1:]) for split in stored_splits.values()}
        if len(shapes) > 1:
            raise TutelageError(f"the splits of {self.name} have images of different shapes: {sorted(shapes)}")
        kinds = {(split.modality, split.targets) for split in stored_splits.values()}
        if len(kinds) > 1:
            raise TutelageError(f"the splits of {self.name} are of different kinds: {', '.join(map(str, kinds))}")
        stored = {part: split.inputs for part, split in given.items()}
        record = (*self.record, *_changes(stored_splits["train"].modality, stored))
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
        given = {part: pair for part, pair in pairs.items() if pair is not None}
        splits = {
            part: split_from_arrays(pair, f"{part} split of {name}", modality, targets) for part, pair in given.items()
        }
        names = default_class_names(splits, name) if classes is None else tuple(classes)
        record: list[dict[str, Any]] = _changes(modality, {part: pair[0] for part, pair in given.items()})
        if test is None:
            splits["train"], splits["test"], entry = split_off_test(splits["train"], test_share, name)
            record.append(entry)
        elif test_share is not None:
            raise TutelageError(f"{name} has a test split already; leave out the test share of {test_share}")
        train_part = splits["train"]
        return cls(
            name,
            names,
            **splits,
            views=modality.augmented(tuple(train_part.inputs.shape[1:])) if views is None else views,
            record=tuple(record),
        )

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(split)} {part}" for part, split in self.splits.items())
        inputs = f"{self.modality.noun} {self.input_shape}"
        count, noun = self.num_classes, self.targets.noun
        labels = f"{count} {noun}" if self.targets.single_label else f"{noun} ({count})"
        return f"Data({self.name!r}, {labels}, {sizes}, {inputs})"

    def with_class_names(self, classes: Sequence[str]) -> Data:
        """The same data with these class names, if it has none."""
        return self if self.classes else replace(self, classes=tuple(classes))

    @property
    def splits(self) -> dict[str, Split]:
        """The splits that exist, by name."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in splits.items() if split is not None}

    @property
    def num_classes(self) -> int:
        """How many classes there are, or labels, quantities or symbols: what a network has outputs for."""
        return len(self.classes)

    @property
    def modality(self) -> Modality:
        """What the inputs are."""
        return self.train.modality

    @property
    def targets(self) -> Targets:
        """What the labels are."""
        return self.train.targets

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input as a network takes it: (C, H, W) of images."""
        return self.modality.input_shape(tuple(self.train.inputs.shape[1:]))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of images, as a network takes them.

        Raises:
            TutelageError: the inputs are no images.
        """
        if len(self.input_shape) != 3:
            raise TutelageError(f"this needs images, and the inputs of {self.name} are {self.modality.noun}")
        channels, height, width = self.input_shape
        return channels, height, width

    @cached_property
    def mean_std(self) -> MeanStd:
        """What networks normalise the training split's inputs by: of images each channel's in [0, 1], both (C,).

        From every training sample in memory; from 10,000 of them, drawn with a fixed seed, where they are files.
        A channel that never varies gets a standard deviation of 1, so that dividing by it is harmless.
        """
        images = self.train.inputs
        if not isinstance(images, Tensor):
            drawn = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(0))[:10_000]
            chunks = torch.split(drawn, 256)
        else:
            chunks = torch.split(torch.arange(len(self.train)), 4096)
        return self.modality.mean_std(images[places] for places in chunks)

    def hold_out(self, fraction: float, seed: int = 0) -> Data:
        """Move this fraction of the training split to ``validation``, class by class (a data set's own is kept).

        Every class keeps a training sample, so that one with a single sample is not held out from. Where no sample has
        a label nothing is held out, since no epoch could be selected by it.
        """
        if self.validation is not None or fraction == 0:
            return self
        if not 0 < fraction < 1:
            raise TutelageError(f"the held-out fraction must lie in [0, 1), got {fraction}")
        if not bool(self.targets.labelled(self.train.labels).any()):
            return self
        labels = self.targets.strata(self.train.labels)
        size = round(fraction * len(labels))
        if size == len(labels):
            raise TutelageError(f"holding out {fraction} of {size} samples leaves none to train on; hold out less")
        kept, held = stratified_split(labels, size, seed) if size else (labels, ())
        if len(held) == 0:
            return self
        return replace(
            self,
            train=self.train.subset(torch.from_numpy(kept)),
            validation=self.train.subset(torch.from_numpy(held)),
            record=(*self.record, {"hold_out": fraction, "seed": seed, "samples": len(held)}),
        )

    @property
    def fingerprint(self) -> str:
        """Thirty-two hexadecimal digits that two data sets share only if a run on one is a run on the other.

        The first sixteen are those of the training split's images and labels (``Split.fingerprint``). The others cover
        the class names, the augmentation, the other splits, and each sample's index, clean label and trust.
        """
        digest = hashlib.sha256(json.dumps([self.classes, self.views.settings(), self.input_shape]).encode())
        for part, split in self.splits.items():
            digest.update(f"{part} {'' if part == 'train' else split.fingerprint}".encode())
            for values in (split.index, split.clean_labels, split.trusted):
                digest.update(b"none" if values is None else values.cpu().numpy().data)
        return self.train.fingerprint + digest.hexdigest()[:16]

    def summary(self) -> dict[str, Any]:
        """Classes, counts, image shape, statistics and record as plain JSON values."""
        mean, std = self.mean_std
        return {
            "name": self.name,
            "classes": list(self.classes),
            "counts": {part: split.targets.counts(split.labels, self.classes) for part, split in self.splits.items()},
            "samples": {part: len(split) for part, split in self.splits.items()},
            "noise_rate": {part: split.noise_rate for part, split in self.splits.items()},
            "image_shape": list(self.input_shape),
            "mean": list(mean),
            "std": list(std),
            "views": self.views.settings() | {"count": self.views.count},
            "record": [dict(entry) for entry in self.record],
        }


def default_class_names(splits: Mapping[str, Split], what: str) -> tuple[str, ...]:
    """The numbers of the classes as their names: those of the training labels or, without any, of the other splits'.

    Raises:
        TutelageError: no label tells how many there are, and networks cannot take the number from a teacher.
    """
    sizes = {name: split.targets.num_classes(split.labels) for name, split in splits.items()}
    count = sizes["train"] or max(sizes.values())
    if count == 0 and not splits["train"].targets.single_label:
        raise TutelageError(f"the train split of {what} has no label at all; label some samples or name the symbols")
    return tuple(str(number) for number in range(count))


def _changes(modality: Modality, inputs: Mapping[str, object]) -> list[dict[str, Any]]:
    """What storing the inputs of these splits changes, for the record: the splits, by the name of the change."""
    changes: dict[str, list[str]] = {}
    for part, values in inputs.items():
        if change := modality.conversion(values):
            changes.setdefault(change, []).append(part)
    return [{change: changed} for change, changed in changes.items()]
