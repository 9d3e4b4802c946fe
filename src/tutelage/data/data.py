"""A data set: its parts, what its images look like, and what was done to it."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.data.arrays import as_clean_labels, as_images, as_index, as_labels, as_trusted, check_image_shape
from tutelage.data.division import divide
from tutelage.data.images import Chosen, Images, image_bytes
from tutelage.data.views import Views
from tutelage.errors import TutelageError, TutelageWarning
from tutelage.text import value_text

ArrayLike = Tensor | NDArray[Any]

TEST_SHARE = 0.2  # of a data set that has no test part


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """One part of a data set.

    Attributes:
        images: (N, H, W, C) uint8: a tensor, or ``ImageFiles`` that are read batch by batch.
        labels: (N,) int64 class numbers, ``-1`` for no label; or (N, C) float32 soft labels.
        index: (N,) int64, each sample's place in the part it was loaded from, or its number in a published set.
        clean_labels: (N,) int64, the labels before any condition was applied. For analysis, never for training.
        trusted: (N,) bool, samples whose label somebody has checked: noise leaves them alone, and a method may train
            by them. ``None`` where nobody has.
    """

    images: Tensor | Images
    labels: Tensor
    index: Tensor
    clean_labels: Tensor
    trusted: Tensor | None = None

    @classmethod
    def of(cls, images: Tensor | Images, labels: Tensor) -> Split:
        """A part as it was loaded: indices run from 0 and the labels, or the largest of soft ones, count as clean.

        Raises:
            TutelageError: the labels are neither (N,) or (N, 1) integers nor (N, C) distributions.
        """
        labels = as_labels(labels, "the array of labels")
        return cls(
            images,
            labels,
            torch.arange(len(labels), device=labels.device),
            labels if labels.ndim == 1 else labels.argmax(1),
        )

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        return f"Split({len(self)} samples, images {tuple(self.images.shape)}, labels {tuple(self.labels.shape)})"

    @property
    def in_memory(self) -> bool:
        """Whether the pixels are a tensor rather than files."""
        return isinstance(self.images, Tensor)

    @property
    def corrupted(self) -> Tensor:
        """(N,) bool: where the label given differs from the clean one (an absent label is not a wrong one)."""
        given = self.labels if self.labels.ndim == 1 else self.labels.argmax(1)
        return (given != self.clean_labels) & (given >= 0)

    @property
    def noise_rate(self) -> float:
        """The share of the samples with a label whose label is wrong; 0 where no sample has one."""
        labelled = len(self) if self.labels.ndim == 2 else int((self.labels >= 0).sum())
        return int(self.corrupted.sum()) / max(labelled, 1)

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that two parts share only if they have the same labels and the same images.

        Images that are files count as the same while name, size and time of change of each one are.
        """
        digest = hashlib.sha256(self.labels.cpu().contiguous().numpy().data)
        for content in image_bytes(self.images):
            digest.update(content)
        return digest.hexdigest()[:16]

    def subset(self, places: Tensor) -> Split:
        """The samples at these places of this part, in this order; their ``index`` is kept."""
        images = self.images[places] if isinstance(self.images, Tensor) else Chosen(self.images, places)
        trusted = None if self.trusted is None else self.trusted[places]
        return Split(images, self.labels[places], self.index[places], self.clean_labels[places], trusted)


@dataclass(frozen=True, eq=False, repr=False)
class Data:
    """A data set with its classes, its parts and the record of what was done to it.

    Arrays are checked as those of files are: NumPy arrays become tensors, other integers int64, and floats in [0, 1]
    uint8, which the record says.

    Attributes:
        name: what it was opened as, for instance ``"digits"``.
        classes: the class names, in the order of the class numbers.
        train, validation, test: the parts; ``validation`` is a held-out piece of the training part, or ``None``.
        views: the augmentation its training images are given.
        record: what was done to it, in order, as plain JSON values (realised noise rates among them).
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    validation: Split | None = None
    views: Views = Views()  # noqa: RUF009 - a frozen value
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
        shapes = {tuple(split.images.shape[1:]) for split in checked.values()}
        if len(shapes) > 1:
            raise TutelageError(f"the parts of {self.name} have images of different shapes: {sorted(shapes)}")
        rounded = [part for part, split in given.items() if _dtype(split.images) != "uint8"]
        record = (*self.record, {"rounded_to_uint8": rounded}) if rounded else tuple(self.record)
        for field, value in {"classes": names, "record": record, **checked}.items():
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
    ) -> Data:
        """A data set from pairs of images and labels, NumPy arrays or tensors.

        Args:
            train, test, validation: images, (N, H, W) or (N, H, W, C), uint8 or floats in [0, 1]; and labels, (N,)
                integers, -1 for none, or (N, C) distributions.
            classes: their names; by default the numbers up to the largest training label.
            name: what messages and records call it.
            views: the augmentation; by default crops, and flips of coloured images.
            test_share: where there is no ``test``, how much of each class becomes the test part; by default 0.2, and a
                warning says so.

        Raises:
            TutelageError: an array is not as above; the text names it.
        """
        pairs = {"train": train, "validation": validation, "test": test}
        given = {part: pair for part, pair in pairs.items() if pair is not None}
        parts = {part: _part(pair, f"{part} part of {name}") for part, pair in given.items()}
        names = numbered_classes(parts["train"].labels, name) if classes is None else tuple(classes)
        rounded = [part for part, (images, _) in given.items() if _dtype(images) != "uint8"]
        record: list[dict[str, Any]] = [{"rounded_to_uint8": rounded}] if rounded else []
        if test is None:
            parts["train"], parts["test"], entry = split_off_test(parts["train"], test_share, name)
            record.append(entry)
        elif test_share is not None:
            raise TutelageError(f"{name} has a test part of its own; leave out the test share of {test_share}")
        _, height, _, channels = parts["train"].images.shape
        return cls(
            name,
            names,
            **parts,
            views=Views(pad=height // 8, flip=channels == 3) if views is None else views,
            record=tuple(record),
        )

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(split)} {part}" for part, split in self.parts.items())
        return f"Data({self.name!r}, {self.num_classes} classes, {sizes}, images {self.image_shape})"

    @property
    def parts(self) -> dict[str, Split]:
        """The parts that exist, by name."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in parts.items() if split is not None}

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W), as a network sees it."""
        _, height, width, channels = self.train.images.shape
        return channels, height, width

    @cached_property
    def mean_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Per-channel mean and standard deviation of the training part's pixels in [0, 1], both (C,).

        From every training image in memory; from 10,000 of them, drawn with a fixed seed, where they are files.
        A channel that never varies gets a standard deviation of 1, so that dividing by it is harmless.
        """
        images = self.train.images
        if not isinstance(images, Tensor):
            drawn = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(0))[:10_000]
            chunks = torch.split(drawn, 256)
        else:
            chunks = torch.split(torch.arange(len(self.train)), 4096)
        channels = self.image_shape[0]
        total, squares, count = torch.zeros(channels).double(), torch.zeros(channels).double(), 0
        for places in chunks:
            pixels = images[places].reshape(-1, channels).double() / 255
            total += pixels.sum(0).cpu()
            squares += pixels.square().sum(0).cpu()
            count += len(pixels)
        mean = total / count
        std = (squares / count - mean.square()).clamp_min(0).sqrt()
        std[std < 1e-6] = 1.0
        return tuple(mean.tolist()), tuple(std.tolist())

    def hold_out(self, fraction: float, seed: int = 0) -> Data:
        """Move this fraction of the training part to ``validation``, class by class (a data set's own is kept).

        Every class keeps a training sample, so that one with a single sample is not held out from.
        """
        if self.validation is not None or fraction == 0:
            return self
        if not 0 < fraction < 1:
            raise TutelageError(f"the held-out fraction must lie in [0, 1), got {fraction}")
        labels = self.train.labels if self.train.labels.ndim == 1 else self.train.labels.argmax(1)
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
        digest = hashlib.sha256(json.dumps([self.classes, asdict(self.views), self.image_shape]).encode())
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
            "counts": {part: class_counts(split.labels, self.num_classes) for part, split in self.parts.items()},
            "samples": {part: len(split) for part, split in self.parts.items()},
            "noise_rate": {part: split.noise_rate for part, split in self.parts.items()},
            "image_shape": list(self.image_shape),
            "mean": list(mean),
            "std": list(std),
            "views": asdict(self.views) | {"count": self.views.count},
            "record": [dict(entry) for entry in self.record],
        }


def class_counts(labels: Tensor, num_classes: int) -> list[int]:
    """How many samples each class has; soft labels count for their largest class, unlabelled ones for none."""
    hard = labels if labels.ndim == 1 else labels.argmax(1)
    return torch.bincount(hard[hard >= 0], minlength=num_classes).tolist()


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
    hard = part.labels if part.labels.ndim == 1 else part.labels.argmax(1)
    labelled = (hard >= 0).nonzero().squeeze(1)
    _, held = divide(hard[labelled], max(1, round(used * len(labelled))), seed=0) if len(labelled) else ((), ())
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


def numbered_classes(labels: Tensor, what: str) -> tuple[str, ...]:
    """The numbers of the classes as their names, as many as the labels have: of (N,) int64 or (N, C) float32."""
    count = labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1 if len(labels) else 0
    if count == 0:
        raise TutelageError(f"the train part of {what} has no label at all; label some samples or name the classes")
    return tuple(str(number) for number in range(count))


def _dtype(images: object) -> str:
    """Of the pixels, as NumPy names it; files are read as uint8."""
    return str(getattr(images, "dtype", "uint8")).removeprefix("torch.")


def _part(pair: object, what: str) -> Split:
    """A part from a pair of arrays."""
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise TutelageError(f"the {what} is no pair (images, labels): {value_text(pair)}")
    images = as_images(pair[0], f"the array of images of the {what}")
    labels = as_labels(pair[1], f"the array of labels of the {what}")
    _check_sizes(images, labels, what)
    return Split.of(images, labels)


def _checked(split: object, what: str, classes: Sequence[str]) -> Split:
    """The part with its tensors as ``Split`` has them; one that no network could be trained on is refused."""
    if not isinstance(split, Split):
        raise TutelageError(
            f"the {what} is a {type(split).__name__}; make parts with Split.of(images, labels), or all of them with "
            "Data.from_arrays((images, labels))"
        )
    images, labels = split.images, as_labels(split.labels, f"the array of labels of the {what}")
    if len(labels) == 0:
        raise TutelageError(f"the {what} is empty")
    if isinstance(images, Tensor | np.ndarray) or not hasattr(images, "shape"):
        images = as_images(images, f"the array of images of the {what}")
    else:
        check_image_shape(images.shape, f"the images of the {what}")
    _check_sizes(images, labels, what)
    _check_classes(labels, what, classes)
    samples = len(labels)
    checked: dict[str, Any] = {
        "images": images,
        "labels": labels,
        "index": as_index(split.index, samples, f"the index of the {what}"),
        "clean_labels": as_clean_labels(split.clean_labels, samples, len(classes), f"the clean labels of the {what}"),
        "trusted": None if split.trusted is None else as_trusted(split.trusted, samples, f"trusted of the {what}"),
    }
    changes = {name: value for name, value in checked.items() if value is not getattr(split, name)}
    return replace(split, **changes) if changes else split


def _check_sizes(images: Tensor | Images, labels: Tensor, what: str) -> None:
    if images.shape[0] != len(labels):
        raise TutelageError(
            f"the {what} needs images (N, H, W, C) and N labels, got {tuple(images.shape)} images "
            f"and {tuple(labels.shape)} labels"
        )


def _check_classes(labels: Tensor, what: str, classes: Sequence[str]) -> None:
    """Refuse labels of classes that there are not."""
    if labels.ndim == 2:
        if labels.shape[1] != len(classes):
            raise TutelageError(f"the {what} has {labels.shape[1]} columns of soft labels for {len(classes)} classes")
        return
    low, high = int(labels.min()), int(labels.max())
    if high >= len(classes):
        start = "; they start at 1: subtract 1" if high == len(classes) and not (labels == 0).any() else ""
        raise TutelageError(
            f"the {what} has labels from {low} to {high}, but there are {len(classes)} classes, "
            f"0 to {len(classes) - 1}{start}"
        )


def check_every_class_taught(data: Data) -> None:
    """Refuse to train on a set in which a class has no labelled training sample."""
    if data.num_classes < 2:
        raise TutelageError(
            f"{data.name} has {data.num_classes} class, and a network that always names it is always right; "
            "train on 2 classes or more"
        )
    counts = class_counts(data.train.labels, data.num_classes)
    empty = [data.classes[c] for c, count in enumerate(counts) if count == 0]
    if empty == [data.classes[0]]:
        raise TutelageError(
            f"the class {empty[0]!r} of {data.name} has no training sample: the labels start at 1; subtract 1 if they "
            f"count the classes from 1, else add samples of it"
        )
    if empty:
        shown = ", ".join(repr(name) for name in empty[:5]) + (", …" if len(empty) > 5 else "")
        raise TutelageError(
            f"{len(empty)} of the {data.num_classes} classes of {data.name} have no training sample ({shown}); "
            "add samples or remove the class"
        )
