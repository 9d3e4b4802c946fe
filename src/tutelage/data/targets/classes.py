"""One class, or one grade, per sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tutelage.data.arrays import as_labels
from tutelage.data.batch import UNLABELLED, hard_labels
from tutelage.data.targets.base import Targets
from tutelage.errors import TutelageError


@dataclass(frozen=True, slots=True)
class Classes(Targets):
    """One class: (N,) int64, ``-1`` for no label; or a distribution over classes: (N, C) float32."""

    task: ClassVar[str] = "classification"
    noun: ClassVar[str] = "classes"
    unknown: ClassVar[float | None] = UNLABELLED
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


def class_counts(labels: Tensor, num_classes: int) -> list[int]:
    """How many samples each class has; soft labels count for their largest class, unlabelled ones for none."""
    classes = hard_labels(labels)
    return torch.bincount(classes[classes >= 0], minlength=num_classes).tolist()
