"""Views that tests share, and the loss of terms on a batch."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from tutelage.data import Batch
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.terms import View

Net = Callable[..., Tapped]


class Flipped(View):
    """The first ``samples`` images (default: all) of the batch, mirrored; records its arguments."""

    def __init__(self, weight: Tensor | None = None, samples: int | None = None) -> None:
        self.weight, self.samples = weight, samples
        self.calls: list[tuple[Batch, Outputs, Outputs | None]] = []

    def __call__(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> Batch:
        self.calls.append((batch, student, teacher))
        rows = slice(None, self.samples)
        return Batch(batch.inputs[rows].flip(3), batch.targets[rows], batch.index[rows], batch.key[rows], self.weight)
