"""A string of symbols per sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tutelage.data.arrays import as_integers
from tutelage.data.batch import UNLABELLED
from tutelage.data.targets.base import Targets
from tutelage.data.targets.classes import class_counts
from tutelage.errors import TutelageError

MAX_SYMBOLS = 100_000


@dataclass(frozen=True, slots=True)
class Strings(Targets):
    """A string of symbols: (N, L) int64 symbol numbers, ``-1`` where one is unknown."""

    task: ClassVar[str] = "strings"
    noun: ClassVar[str] = "strings"
    unknown: ClassVar[float | None] = UNLABELLED

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
