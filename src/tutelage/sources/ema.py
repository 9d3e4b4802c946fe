"""A moving average of the student as teacher: Tarvainen, Valpola 2017, arXiv 1703.01780."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.models.inputs import as_batch
from tutelage.models.outputs import Outputs
from tutelage.models.state import copy_network
from tutelage.models.tapped import as_tapped
from tutelage.sources.frozen import Frozen
from tutelage.sources.source import NO_COHORT, Cohort, Source

Buffers = Literal["average", "copy", "own"]


class EMA(Source):
    """An exponential moving average of a student's weights, used as its teacher.

    After update t (from 1): average <- a average + (1 - a) student. With a warm start a = min(decay, 1 - 1/t), so that
    the first update copies the student and the initial random weights do not count; without, a = decay from the first
    update on, as in some implementations.

    Only running statistics are averaged: floating-point buffers whose own name begins with ``running_``, such as
    ``running_mean`` and ``running_var`` of batch normalization. All other buffers are copied: batch counters, vectors
    of spectral norm, scales of quantizers, position tables.

    In your own training loop, call ``after_step`` after each step of the optimizer.

    Args:
        student: the network that is averaged; a bare ``nn.Module`` gets its inputs without normalization.
        decay: the largest a, in [0, 1).
        buffers: "average" or "copy" the student's running statistics; or "own": the average runs in train mode, with
            dropout and batch statistics, and updates its buffers itself, as in implementations that average parameters
            only.
        warm_start: see above.
        start: a network with the initial weights of the average; by default the student.

    Raises:
        TutelageError: a network cannot be copied.
    """

    def __init__(
        self,
        student: nn.Module,
        decay: float = 0.999,
        buffers: Buffers = "average",
        *,
        warm_start: bool = True,
        start: nn.Module | None = None,
    ) -> None:
        if not 0 <= decay < 1:
            raise TutelageError(f"the decay must be in [0, 1), got {decay}")
        self.student, self.decay, self.buffers, self.warm_start = as_tapped("EMA", student), decay, buffers, warm_start
        initial = self.student if start is None else as_tapped("EMA", start)
        self.model = copy_network(
            initial, type(initial.module).__name__, "EMA averages a copy; give a network that can be copied"
        )
        self.models = (self.model,)
        self._frozen = Frozen(self.model)
        self.updates = 0

    def __call__(self, batch: Batch | Any, roles: Collection[str] = ("logits",), cohort: Cohort = NO_COHORT) -> Outputs:
        """Return the averaged network's outputs, in eval mode, or in train mode with ``buffers="own"``."""
        batch = as_batch(batch)
        if self.buffers != "own":
            return self._frozen(batch, roles, cohort)
        with torch.no_grad():
            return self.model.train().tap(batch.inputs, roles)

    def after_step(self) -> None:
        """Update the average with the student's weights."""
        self.updates += 1
        decay = min(self.decay, 1 - 1 / self.updates) if self.warm_start else self.decay
        update_average(self.model, self.student, decay, self.buffers)

    def state_dict(self) -> dict[str, Any]:
        """The average and its number of updates."""
        return {"model": self.model.module.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved average."""
        self.model.module.load_state_dict(state["model"])
        self.updates = state["updates"]


@torch.no_grad()
def update_average(average: nn.Module, current: nn.Module, decay: float, buffers: Buffers = "average") -> None:
    """average <- decay average + (1 - decay) current, in place, for all parameters; buffers are treated as in ``EMA``.

    Args:
        average: a copy of ``current``.
        current: the network that is trained.
        decay: in [0, 1).
        buffers: as in ``EMA``.
    """
    blended: tuple[list[Tensor], list[Tensor]] = ([], [])
    copied: tuple[list[Tensor], list[Tensor]] = ([], [])
    for average_parameter, parameter in zip(average.parameters(), current.parameters(), strict=True):
        _add(blended, average_parameter, parameter)
    if buffers != "own":
        for (name, held), now in zip(average.named_buffers(), current.buffers(), strict=True):
            average_it = buffers == "average" and _is_statistic(name, held)
            _add(blended if average_it else copied, held, now)
    if blended[0]:
        torch._foreach_lerp_(blended[0], blended[1], 1 - decay)
    if copied[0]:
        torch._foreach_copy_(copied[0], copied[1])


def _is_statistic(name: str, buffer: Tensor) -> bool:
    """Whether a buffer is a running statistic, of which an average is meaningful."""
    return buffer.is_floating_point() and name.rpartition(".")[2].startswith("running_")


def _add(lists: tuple[list[Tensor], list[Tensor]], average: Tensor, current: Tensor) -> None:
    lists[0].append(average)
    lists[1].append(current)
