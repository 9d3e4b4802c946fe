"""Several labels per sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tutelage.data.arrays import as_floats
from tutelage.data.batch import UNLABELLED
from tutelage.data.targets.base import Targets
from tutelage.data.targets.columns import check_columns
from tutelage.errors import TutelageError


@dataclass(frozen=True, slots=True)
class MultiLabel(Targets):
    """Any number of labels: (N, C) float32, 1 for a label that applies, 0 for one that does not, ``-1`` for unknown."""

    task: ClassVar[str] = "multi_label"
    noun: ClassVar[str] = "several labels a sample"
    unknown: ClassVar[float | None] = UNLABELLED

    def store(self, labels: object, what: str) -> Tensor:
        """(N, C) numbers or booleans, 0, 1 or -1, to float32."""
        stored = as_floats(labels, what, "several labels a sample (N, C) of 0, 1 or -1", axes=(2,), missing=False)
        invalid = stored[(stored != 0) & (stored != 1) & (stored != UNLABELLED)]
        if len(invalid):
            raise TutelageError(f"{what} has the value {float(invalid[0]):g}; labels are 0, 1, or -1 for unknown")
        return stored

    def check(self, labels: Tensor, what: str, names: Sequence[str]) -> None:
        """A column for each label."""
        check_columns(labels, what, names, "labels")

    def labelled(self, labels: Tensor) -> Tensor:
        """Samples with at least one known label."""
        return (labels != UNLABELLED).any(1)

    def counts(self, labels: Tensor, names: Sequence[str]) -> list[int]:
        """How many samples have each label."""
        return (labels == 1).sum(0).tolist()
