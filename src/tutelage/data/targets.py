"""Kinds of targets: one class, several labels, quantities or a string per sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tutelage.data.arrays import as_floats, as_integers, as_labels
from tutelage.data.batch import UNLABELLED, hard_labels
from tutelage.data.views import Views
from tutelage.errors import TutelageError

MAX_SYMBOLS = 100_000


@dataclass(frozen=True, slots=True)
class Targets:
    """The form of a split's labels; the base class of each kind of targets."""

    task: ClassVar[str]
    """The name of the task for such data, unless the method names another one."""

    noun: ClassVar[str]
    """Their name in messages."""

    single_label: ClassVar[bool] = False
    """Whether each sample has one class, as label noise and class imbalance require."""

    def store(self, labels: object, what: str) -> Tensor:
        """Convert an array or a tensor to the stored form of labels, (N, ...).

        Raises:
            TutelageError: another shape, dtype or range; the text says which is expected.
        """
        raise NotImplementedError(f"{type(self).__name__} must define store(labels, what)")

    def check(self, labels: Tensor, what: str, names: Sequence[str]) -> None:
        """Refuse stored labels that do not fit the names of the classes, labels, quantities or symbols.

        Raises:
            TutelageError: with the number of names and the expected number.
        """

    def unlabelled(self, samples: int) -> Tensor:
        """The labels of unlabelled samples.

        Raises:
            TutelageError: the number of labels per sample would be unknown, unless samples have one class.
        """
        raise TutelageError(
            f"{self.noun} cannot be left out, since their number would be unknown; mark each one as unknown: -1, or "
            "NaN for quantities"
        )

    def num_classes(self, labels: Tensor) -> int:
        """How many names these labels need; by default the number of columns."""
        return labels.shape[1]

    def classes(self, labels: Tensor) -> Tensor:
        """The class of each sample, (N,) int64; ``-1`` for none, as for all samples of other kinds of targets."""
        return torch.full((len(labels),), UNLABELLED, device=labels.device)

    def strata(self, labels: Tensor) -> Tensor:
        """The classes (N,) int64 that a held-out split is stratified by; -1 if there are none."""
        return self.classes(labels)

    def labelled(self, labels: Tensor) -> Tensor:
        """(N,) bool: which samples have a label."""
        return self.classes(labels) != UNLABELLED

    def transformed(self, labels: Tensor, views: Views, view: Tensor) -> Tensor:
        """The labels (B, ...) of inputs under these views (B,); by default unchanged."""
        return labels

    def counts(self, labels: Tensor, names: Sequence[str]) -> list[int]:
        """How many samples of a split have each name."""
        return [len(labels)] * len(names)


@dataclass(frozen=True, slots=True)
class Classes(Targets):
    """One class: (N,) int64, ``-1`` for no label; or a distribution over classes: (N, C) float32."""

    task: ClassVar[str] = "classification"
    noun: ClassVar[str] = "classes"
    single_label: ClassVar[bool] = True

    def store(self, labels: object, what: str) -> Tensor:
        """(N,) or (N, 1) integers to (N,) int64, (N, C) distributions to float32."""
        return as_labels(labels, what)

    def check(self, labels: Tensor, what: str, names: Sequence[str]) -> None:
        """Class numbers below ``len(names)``, or as many columns."""
        if labels.ndim == 2:
            if labels.shape[1] != len(names):
                raise TutelageError(f"the {what} has {labels.shape[1]} columns of soft labels for {len(names)} classes")
            return
        low, high = int(labels.min()), int(labels.max())
        if high >= len(names):
            start = "; they start at 1: subtract 1" if high == len(names) and not (labels == 0).any() else ""
            raise TutelageError(
                f"the {what} has labels from {low} to {high}, but there are {len(names)} classes, "
                f"0 to {len(names) - 1}{start}"
            )

    def unlabelled(self, samples: int) -> Tensor:
        """-1 for each sample."""
        return torch.full((samples,), UNLABELLED)

    def num_classes(self, labels: Tensor) -> int:
        """The columns of soft labels, or one more than the largest class number."""
        return labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1 if len(labels) else 0

    def classes(self, labels: Tensor) -> Tensor:
        """Soft labels count as their largest class."""
        return hard_labels(labels)

    def counts(self, labels: Tensor, names: Sequence[str]) -> list[int]:
        """How many samples each class has; unlabelled samples are not counted."""
        return class_counts(labels, len(names))


@dataclass(frozen=True, slots=True)
class Grades(Classes):
    """One class, stored as ``Classes`` are; the classes are grades, ordered by their numbers."""

    task: ClassVar[str] = "ordinal"
    noun: ClassVar[str] = "grades"


@dataclass(frozen=True, slots=True)
class MultiLabel(Targets):
    """Any number of labels: (N, C) float32, 1 for a label that applies, 0 for one that does not, ``-1`` for unknown."""

    task: ClassVar[str] = "multi_label"
    noun: ClassVar[str] = "several labels a sample"

    def store(self, labels: object, what: str) -> Tensor:
        """(N, C) numbers or booleans, 0, 1 or -1, to float32."""
        stored = as_floats(labels, what, "several labels a sample (N, C) of 0, 1 or -1", axes=(2,), missing=False)
        invalid = stored[(stored != 0) & (stored != 1) & (stored != UNLABELLED)]
        if len(invalid):
            raise TutelageError(f"{what} has the value {float(invalid[0]):g}; labels are 0, 1, or -1 for unknown")
        return stored

    def check(self, labels: Tensor, what: str, names: Sequence[str]) -> None:
        """A column for each label."""
        _check_columns(labels, what, names, "labels")

    def labelled(self, labels: Tensor) -> Tensor:
        """Samples with at least one known label."""
        return (labels != UNLABELLED).any(1)

    def counts(self, labels: Tensor, names: Sequence[str]) -> list[int]:
        """How many samples have each label."""
        return (labels == 1).sum(0).tolist()


@dataclass(frozen=True, slots=True)
class Quantities(Targets):
    """Quantities: (N, K) float32, NaN for an unknown one."""

    task: ClassVar[str] = "regression"
    noun: ClassVar[str] = "quantities"

    def store(self, labels: object, what: str) -> Tensor:
        """(N,) or (N, K) numbers to (N, K) float32."""
        stored = as_floats(labels, what, "quantities (N, K), NaN where unknown", axes=(1, 2), missing=True)
        return stored if stored.ndim == 2 else stored[:, None]

    def check(self, labels: Tensor, what: str, names: Sequence[str]) -> None:
        """A column for each quantity."""
        _check_columns(labels, what, names, "quantities")

    def labelled(self, labels: Tensor) -> Tensor:
        """Samples with at least one known quantity."""
        return (~labels.isnan()).any(1)

    def counts(self, labels: Tensor, names: Sequence[str]) -> list[int]:
        """How many samples have each quantity."""
        return (~labels.isnan()).sum(0).tolist()


@dataclass(frozen=True, slots=True)
class Strings(Targets):
    """A string of symbols: (N, L) int64 symbol numbers, ``-1`` where one is unknown."""

    task: ClassVar[str] = "strings"
    noun: ClassVar[str] = "strings"

    def store(self, labels: object, what: str) -> Tensor:
        """(N, L) integers to int64."""
        return as_integers(labels, what, "strings of symbol numbers (N, L)", low=UNLABELLED, high=MAX_SYMBOLS)

    def check(self, labels: Tensor, what: str, names: Sequence[str]) -> None:
        """Symbol numbers below ``len(names)``."""
        high = int(labels.max())
        if high >= len(names):
            raise TutelageError(f"the {what} has the symbol number {high}, but there are {len(names)} symbols")

    def num_classes(self, labels: Tensor) -> int:
        """One more than the largest symbol number."""
        return int(labels.max()) + 1 if len(labels) else 0

    def labelled(self, labels: Tensor) -> Tensor:
        """Samples with at least one known symbol."""
        return (labels != UNLABELLED).any(1)

    def counts(self, labels: Tensor, names: Sequence[str]) -> list[int]:
        """How often each symbol occurs."""
        return class_counts(labels.flatten(), len(names))


def class_counts(labels: Tensor, num_classes: int) -> list[int]:
    """How many samples each class has; soft labels count for their largest class, unlabelled ones for none."""
    classes = hard_labels(labels)
    return torch.bincount(classes[classes >= 0], minlength=num_classes).tolist()


def _check_columns(labels: Tensor, what: str, names: Sequence[str], noun: str) -> None:
    if labels.shape[1] != len(names):
        raise TutelageError(f"the {what} has {labels.shape[1]} columns for {len(names)} {noun}")
