"""Quantities per sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tutelage.data.arrays import as_floats
from tutelage.data.targets.base import Targets
from tutelage.data.targets.columns import check_columns


@dataclass(frozen=True, slots=True)
class Quantities(Targets):
    """Quantities: (N, K) float32, NaN for an unknown one."""

    task: ClassVar[str] = "regression"
    noun: ClassVar[str] = "quantities"
    unknown: ClassVar[float | None] = float("nan")

    def store(self, labels: object, what: str) -> Tensor:
        """(N,) or (N, K) numbers to (N, K) float32."""
        stored = as_floats(labels, what, "quantities (N, K), NaN where unknown", axes=(1, 2), missing=True)
        return stored if stored.ndim == 2 else stored[:, None]

    def check(self, labels: Tensor, what: str, names: Sequence[str]) -> None:
        """A column for each quantity."""
        check_columns(labels, what, names, "quantities")

    def labelled(self, labels: Tensor) -> Tensor:
        """Samples with at least one known quantity."""
        return (~labels.isnan()).any(1)

    def counts(self, labels: Tensor, names: Sequence[str]) -> list[int]:
        """How many samples have each quantity."""
        return (~labels.isnan()).sum(0).tolist()
