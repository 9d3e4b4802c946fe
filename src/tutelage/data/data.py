"""A data set: its parts, what its images look like, and what was done to it."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.data.arrays import as_clean_labels, as_index, as_trusted
from tutelage.data.division import divide
from tutelage.data.images import Chosen, Images, image_bytes
from tutelage.data.modality import MeanStd, Modality, Pixels
from tutelage.data.targets import Classes, Targets
from tutelage.data.views import Views
from tutelage.errors import TutelageError, TutelageWarning
from tutelage.text import value_text

ArrayLike = Tensor | NDArray[Any]

TEST_SHARE = 0.2  # of a data set that has no test part


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """One part of a data set.

    Attributes:
        inputs: as they are stored, of images (N, H, W, C) uint8: a tensor, or ``ImageFiles`` that are read
            batch by batch.
        labels: (N,) int64 class numbers, ``-1`` for no label; or (N, C) float32 soft labels; or as ``targets`` says.
        index: (N,) int64, each sample's place in the part it was loaded from, or its number in a published set.
        clean_labels: (N,) int64, the labels before any condition was applied. For analysis, never for training.
        trusted: (N,) bool, samples whose label somebody has checked: noise leaves them alone, and a method may train
            by them. ``None`` where nobody has.
        modality: what the inputs are.
        targets: what the labels are.
    """

    inputs: Tensor | Images
    labels: Tensor
    index: Tensor
    clean_labels: Tensor
    trusted: Tensor | None = None
    modality: Modality = Pixels()  # noqa: RUF009 - a frozen value
    targets: Targets = Classes()  # noqa: RUF009 - a frozen value

    @classmethod
    def of(
        cls,
        inputs: Tensor | Images,
        labels: Tensor,
        modality: Modality = Pixels(),  # noqa: B008 - a frozen value
        targets: Targets = Classes(),  # noqa: B008 - a frozen value
    ) -> Split:
        """A part as it was loaded: indices run from 0 and the labels, or the largest of soft ones, count as clean.

        Raises:
            TutelageError: the labels are not of the kind of ``targets``.
        """
        labels = targets.store(labels, "the array of labels")
        index = torch.arange(len(labels), device=labels.device)
        return cls(inputs, labels, index, targets.classes(labels), modality=modality, targets=targets)

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        inputs = f"{self.modality.noun} {tuple(self.inputs.shape)}"
        return f"Split({len(self)} samples, {inputs}, {self.targets.noun} {tuple(self.labels.shape)})"

    @property
    def in_memory(self) -> bool:
        """Whether the inputs are a tensor rather than files."""
        return isinstance(self.inputs, Tensor)

    @property
    def corrupted(self) -> Tensor:
        """(N,) bool: where the label given differs from the clean one (an absent label is not a wrong one)."""
        given = self.targets.classes(self.labels)
        return (given != self.clean_labels) & (given >= 0)

    @property
    def noise_rate(self) -> float:
        """The share of the samples with a label whose label is wrong; 0 where no sample has one."""
        return int(self.corrupted.sum()) / max(int(self.targets.labelled(self.labels).sum()), 1)

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that two parts share only if they have the same labels and the same images.

        Images that are files count as the same while name, size and time of change of each one are.
        """
        digest = hashlib.sha256(self.labels.cpu().contiguous().numpy().data)
        for content in image_bytes(self.inputs):
            digest.update(content)
        return digest.hexdigest()[:16]

    def subset(self, places: Tensor) -> Split:
        """The samples at these places of this part, in this order; their ``index`` is kept."""
        inputs = self.inputs[places] if isinstance(self.inputs, Tensor) else Chosen(self.inputs, places)
        return replace(
            self,
            inputs=inputs,
            labels=self.labels[places],
            index=self.index[places],
            clean_labels=self.clean_labels[places],
            trusted=None if self.trusted is None else self.trusted[places],
        )


@dataclass(frozen=True, eq=False, repr=False)
class Data:
    """A data set with its classes, its parts and the record of what was done to it.

    Arrays are checked as those of files are: NumPy arrays become tensors, other integers int64, and floats in [0, 1]
    uint8, which the record says.

    Attributes:
        name: what it was opened as, for instance ``"digits"``.
        classes: the class names, in the order of the class numbers; of other targets the names of the labels, the
            quantities or the symbols.
        train, validation, test: the parts; ``validation`` is a held-out piece of the training part, or ``None``.
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
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            places = ", ".join(str(place) for place, name in enumerate(names) if name == twice[0])
            raise TutelageError(
                f"{self.name} has the class name {twice[0]!r:.80} more than once (classes {places}); "
                "give each class its own name"
            )
        given = {**self.parts, "train": self.train, "test": self.test}
        checked = {part: _checked(split, f"{part} part of {self.name}", names) for part, split in given.items()}
        shapes = {tuple(split.inputs.shape[1:]) for split in checked.values()}
        if len(shapes) > 1:
            raise TutelageError(f"the parts of {self.name} have images of different shapes: {sorted(shapes)}")
        kinds = {(split.modality, split.targets) for split in checked.values()}
        if len(kinds) > 1:
            raise TutelageError(f"the parts of {self.name} are of different kinds: {', '.join(map(str, kinds))}")
        stored = {part: split.inputs for part, split in given.items()}
        record = (*self.record, *_changes(checked["train"].modality, stored))
        views = checked["train"].modality.unaugmented if self.views is None else self.views
        for field, value in {"classes": names, "views": views, "record": record, **checked}.items():
            object.__setattr__(self, field, value)

    @classmethod
    def from_arrays(
        cls,
        train: tuple[ArrayLike, ArrayLike],
        test: tuple[ArrayLike, ArrayLike] | None = None,
        validation: tuple[ArrayLike, ArrayLike] | None = None,
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
                integers, -1 for none, or (N, C) distributions. Or what ``modality`` and ``targets`` say.
            classes: their names; by default the numbers up to the largest training label.
            name: what messages and records call it.
            views: the augmentation; by default crops, and flips of coloured images.
            modality: what the inputs are.
            targets: what the labels are.
            test_share: where there is no ``test``, how much of each class becomes the test part; by default 0.2, and a
                warning says so.

        Raises:
            TutelageError: an array is not as above; the text names it.
        """
        pairs = {"train": train, "validation": validation, "test": test}
        given = {part: pair for part, pair in pairs.items() if pair is not None}
        parts = {part: _part(pair, f"{part} part of {name}", modality, targets) for part, pair in given.items()}
        names = numbered_names(targets.size(parts["train"].labels), name) if classes is None else tuple(classes)
        record: list[dict[str, Any]] = _changes(modality, {part: pair[0] for part, pair in given.items()})
        if test is None:
            parts["train"], parts["test"], entry = split_off_test(parts["train"], test_share, name)
            record.append(entry)
        elif test_share is not None:
            raise TutelageError(f"{name} has a test part of its own; leave out the test share of {test_share}")
        train_part = parts["train"]
        return cls(
            name,
            names,
            **parts,
            views=modality.augmented(tuple(train_part.inputs.shape[1:])) if views is None else views,
            record=tuple(record),
        )

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(split)} {part}" for part, split in self.parts.items())
        inputs = f"{self.modality.noun} {self.input_shape}"
        return f"Data({self.name!r}, {self.num_classes} {self.targets.noun}, {sizes}, {inputs})"

    @property
    def parts(self) -> dict[str, Split]:
        """The parts that exist, by name."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in parts.items() if split is not None}

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
        return self.modality.shape(tuple(self.train.inputs.shape[1:]))

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
        """What networks normalise the training part's inputs by: of images each channel's in [0, 1], both (C,).

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
        """Move this fraction of the training part to ``validation``, class by class (a data set's own is kept).

        Every class keeps a training sample, so that one with a single sample is not held out from.
        """
        if self.validation is not None or fraction == 0:
            return self
        if not 0 < fraction < 1:
            raise TutelageError(f"the held-out fraction must lie in [0, 1), got {fraction}")
        labels = self.targets.strata(self.train.labels)
        size = round(fraction * len(labels))
        if size == len(labels):
            raise TutelageError(f"holding out {fraction} of {size} samples leaves none to train on; hold out less")
        kept, held = divide(labels, size, seed) if size else (labels, ())
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

        The first sixteen are those of the training part's images and labels (``Split.fingerprint``). The others cover
        the class names, the augmentation, the other parts, and each sample's index, clean label and trust.
        """
        digest = hashlib.sha256(json.dumps([self.classes, self.views.settings(), self.input_shape]).encode())
        for part, split in self.parts.items():
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
            "counts": {part: split.targets.counts(split.labels, self.classes) for part, split in self.parts.items()},
            "samples": {part: len(split) for part, split in self.parts.items()},
            "noise_rate": {part: split.noise_rate for part, split in self.parts.items()},
            "image_shape": list(self.input_shape),
            "mean": list(mean),
            "std": list(std),
            "views": self.views.settings() | {"count": self.views.count},
            "record": [dict(entry) for entry in self.record],
        }


def split_off_test(part: Split, share: float | None, name: str) -> tuple[Split, Split, dict[str, Any]]:
    """A training and a test part from the only part of a data set: the same ones every time, class by class.

    Args:
        part: all samples; those without a label stay in the training part.
        share: of each class; ``None`` is 0.2, and a warning says so.
        name: of the data set.

    Returns:
        The training part, the test part, and what the record says of them.

    Raises:
        TutelageError: the share does not lie between 0 and 1, or no class has samples for both parts.
    """
    used = TEST_SHARE if share is None else share
    if not 0 < used < 1:
        raise TutelageError(f"the share of the test part lies between 0 and 1, got {used}")
    strata = part.targets.strata(part.labels)
    labelled = part.targets.labelled(part.labels).nonzero().squeeze(1)
    _, held = divide(strata[labelled], max(1, round(used * len(labelled))), seed=0) if len(labelled) else ((), ())
    if len(held) == 0:
        raise TutelageError(
            f"{name} has no test part, and the classes of its {len(part)} samples are too small to take one from; "
            "add a test part"
        )
    if share is None:
        warnings.warn(
            TutelageWarning(
                f"{name} has no test part: {len(held)} of its {len(part)} samples, drawn class by class, are used for "
                "testing; --test 0.2 (test=0.2) sets the share"
            ),
            stacklevel=4,
        )
    chosen = torch.zeros(len(part), dtype=torch.bool)
    chosen[labelled[torch.from_numpy(held)]] = True
    kept, taken = (~chosen).nonzero().squeeze(1), chosen.nonzero().squeeze(1)
    return part.subset(kept), part.subset(taken), {"test_from": "train", "test_share": used}


def numbered_names(count: int, what: str) -> tuple[str, ...]:
    """The numbers of the classes as their names.

    Raises:
        TutelageError: there is none, since no training sample has a label.
    """
    if count == 0:
        raise TutelageError(f"the train part of {what} has no label at all; label some samples or name the classes")
    return tuple(str(number) for number in range(count))


def _changes(modality: Modality, inputs: Mapping[str, object]) -> list[dict[str, Any]]:
    """What storing the inputs of these parts changes, for the record: the parts, by the name of the change."""
    changes: dict[str, list[str]] = {}
    for part, values in inputs.items():
        if change := modality.changed(values):
            changes.setdefault(change, []).append(part)
    return [{change: changed} for change, changed in changes.items()]


def _part(pair: object, what: str, modality: Modality, targets: Targets) -> Split:
    """A part from a pair of arrays."""
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise TutelageError(f"the {what} is no pair ({modality.noun}, labels): {value_text(pair)}")
    inputs = modality.store(pair[0], f"the array of {modality.noun} of the {what}")
    labels = targets.store(pair[1], f"the array of labels of the {what}")
    _check_sizes(inputs, labels, what, modality)
    return Split.of(inputs, labels, modality, targets)


def _checked(split: object, what: str, classes: Sequence[str]) -> Split:
    """The part with its tensors as ``Split`` has them; one that no network could be trained on is refused."""
    if not isinstance(split, Split):
        raise TutelageError(
            f"the {what} is a {type(split).__name__}; make parts with Split.of(images, labels), or all of them with "
            "Data.from_arrays((images, labels))"
        )
    modality, targets = split.modality, split.targets
    images, labels = split.inputs, targets.store(split.labels, f"the array of labels of the {what}")
    if len(labels) == 0:
        raise TutelageError(f"the {what} is empty")
    if isinstance(images, Tensor | np.ndarray) or not hasattr(images, "shape"):
        images = modality.store(images, f"the array of {modality.noun} of the {what}")
    else:
        modality.check_files(images, f"the {modality.noun} of the {what}")
    _check_sizes(images, labels, what, modality)
    targets.check(labels, what, classes)
    samples = len(labels)
    checked: dict[str, Any] = {
        "inputs": images,
        "labels": labels,
        "index": as_index(split.index, samples, f"the index of the {what}"),
        "clean_labels": as_clean_labels(split.clean_labels, samples, len(classes), f"the clean labels of the {what}"),
        "trusted": None if split.trusted is None else as_trusted(split.trusted, samples, f"trusted of the {what}"),
    }
    changes = {name: value for name, value in checked.items() if value is not getattr(split, name)}
    return replace(split, **changes) if changes else split


def _check_sizes(inputs: Tensor | Images, labels: Tensor, what: str, modality: Modality) -> None:
    if inputs.shape[0] != len(labels):
        raise TutelageError(
            f"the {what} needs as many {modality.noun} as labels, got {tuple(inputs.shape)} {modality.noun} "
            f"and {tuple(labels.shape)} labels"
        )
