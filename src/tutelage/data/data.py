"""A data set: its parts, what its images look like, and what was done to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from tutelage.data.views import Views
from tutelage.errors import TutelageError


@runtime_checkable
class Images(Protocol):
    """Where a part's pixels are: on the device, or in files read as they are needed."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, H, W, C)."""
        ...

    def __getitem__(self, index: Tensor) -> Tensor:
        """The images at these places, (B, H, W, C) uint8."""
        ...

    def stamp(self, place: int) -> str | None:
        """What tells this image from another without reading it; ``None`` where nothing does."""
        ...


@dataclass(frozen=True, eq=False)
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
        """A part as it was loaded: indices run from 0 and the labels, or the largest of soft ones, count as clean."""
        return cls(images, labels, torch.arange(len(labels)), labels if labels.ndim == 1 else labels.argmax(1))

    def __len__(self) -> int:
        return len(self.index)

    @property
    def in_memory(self) -> bool:
        """Whether the pixels are a tensor rather than files."""
        return isinstance(self.images, Tensor)

    @property
    def corrupted(self) -> Tensor:
        """(N,) bool: where the label given differs from the clean one (an absent label is not a wrong one)."""
        given = self.labels if self.labels.ndim == 1 else self.labels.argmax(1)
        return (given != self.clean_labels) & (given >= 0)

    def subset(self, places: Tensor) -> Split:
        """The samples at these places of this part, in this order; their ``index`` is kept."""
        images = self.images[places] if isinstance(self.images, Tensor) else _Chosen(self.images, places)
        trusted = None if self.trusted is None else self.trusted[places]
        return Split(images, self.labels[places], self.index[places], self.clean_labels[places], trusted)


@dataclass(frozen=True, eq=False)
class _Chosen:
    """Some of the images of a larger set of files."""

    images: Images
    places: Tensor

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (len(self.places), *self.images.shape[1:])

    def __getitem__(self, index: Tensor) -> Tensor:
        return self.images[self.places[index]]

    def stamp(self, place: int) -> str | None:
        return self.images.stamp(int(self.places[place]))


@dataclass(frozen=True, eq=False)
class Data:
    """A data set with its classes, its parts and the record of what was done to it.

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
        for part, split in self.parts.items():
            _check(f"{part} part of {self.name}", split, self.classes)
        shapes = {tuple(split.images.shape[1:]) for split in self.parts.values()}
        if len(shapes) > 1:
            raise TutelageError(f"the parts of {self.name} have images of different shapes: {sorted(shapes)}")

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
        """Move this fraction of the training part to ``validation``, class by class (a data set's own is kept)."""
        if self.validation is not None or fraction == 0:
            return self
        if not 0 < fraction < 1:
            raise TutelageError(f"the held-out fraction must lie in [0, 1), got {fraction}")
        from sklearn.model_selection import train_test_split

        labels = self.train.labels if self.train.labels.ndim == 1 else self.train.labels.argmax(1)
        counts = np.unique(labels.numpy(), return_counts=True)[1]
        size = round(fraction * len(labels))
        if size == 0:
            return self
        if size == len(labels):
            raise TutelageError(f"holding out {fraction} of {size} samples leaves none to train on; hold out less")
        stratify = labels.numpy() if counts.min() >= 2 and size >= len(counts) <= len(labels) - size else None
        kept, held = train_test_split(np.arange(len(labels)), test_size=size, random_state=seed, stratify=stratify)
        return replace(
            self,
            train=self.train.subset(torch.from_numpy(np.sort(kept))),
            validation=self.train.subset(torch.from_numpy(np.sort(held))),
            record=(*self.record, {"hold_out": fraction, "seed": seed, "samples": size}),
        )

    def summary(self) -> dict[str, Any]:
        """Classes, counts, image shape, statistics and record as plain JSON values."""
        mean, std = self.mean_std
        return {
            "name": self.name,
            "classes": list(self.classes),
            "counts": {part: class_counts(split.labels, self.num_classes) for part, split in self.parts.items()},
            "samples": {part: len(split) for part, split in self.parts.items()},
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


def _check(what: str, split: Split, classes: Sequence[str]) -> None:
    """Refuse a part that no network could be trained or tested on."""
    if len(split) == 0:
        raise TutelageError(f"the {what} is empty")
    if len(split.images.shape) != 4 or split.images.shape[0] != len(split.labels):
        raise TutelageError(
            f"the {what} needs images (N, H, W, C) and N labels, got {tuple(split.images.shape)} images "
            f"and {tuple(split.labels.shape)} labels"
        )
    if isinstance(split.images, Tensor) and split.images.dtype != torch.uint8:
        raise TutelageError(f"the {what} needs uint8 images, got {split.images.dtype}")
    if split.labels.ndim == 2:
        if split.labels.shape[1] != len(classes):
            raise TutelageError(
                f"the {what} has {split.labels.shape[1]} columns of soft labels for {len(classes)} classes"
            )
        if not torch.isfinite(split.labels).all():
            raise TutelageError(f"the {what} has soft labels that are NaN or infinite")
        return
    low, high = int(split.labels.min()), int(split.labels.max())
    if low < -1 or high >= len(classes):
        raise TutelageError(
            f"the {what} has labels from {low} to {high}, but there are {len(classes)} classes, 0 to {len(classes) - 1}"
        )


def check_every_class_taught(data: Data) -> None:
    """Refuse to train on a set in which a class has no labelled training sample."""
    counts = class_counts(data.train.labels, data.num_classes)
    empty = [data.classes[c] for c, count in enumerate(counts) if count == 0]
    if empty:
        shown = ", ".join(repr(name) for name in empty[:5]) + (", …" if len(empty) > 5 else "")
        raise TutelageError(
            f"{len(empty)} of the {data.num_classes} classes of {data.name} have no training sample ({shown}); "
            "add samples or remove the class"
        )


def as_path(text: str) -> Path:
    """A path as the user wrote it, with ``~`` expanded."""
    return Path(text).expanduser()
