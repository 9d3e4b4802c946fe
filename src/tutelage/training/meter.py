"""Averages of one learner's losses and metric over an epoch, kept on the device until they are read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.models.outputs import Outputs
from tutelage.tasks import Task
from tutelage.training.learner import Learner
from tutelage.training.processes import Processes


@dataclass(frozen=True, slots=True)
class NonFinite:
    """A NaN or infinite value of a term, and its step within the epoch."""

    step: int
    term: str
    value: float


class Meter:
    """The values of one learner's terms in one epoch, and the task's main metric on the training batches.

    Only the steps in which the update rule trained the learner count.
    """

    def __init__(self, learner: Learner, task: Task) -> None:
        self.terms, self._task = list(learner.terms), task
        self._values: list[Tensor] = []
        self._steps: list[int] = []
        self._checked = 0
        self._metric: Tensor | None = None

    def add(self, step: int, values: Tensor, outputs: Outputs, batch: Batch) -> None:
        """Add one step: each term's value (terms,), and the learner's outputs for the batch."""
        self._values.append(values)
        self._steps.append(step)
        metric = self._task.training_metric(outputs, batch)
        if metric is not None:
            self._metric = metric if self._metric is None else self._metric + metric

    def first_non_finite(self, processes: Processes) -> NonFinite | None:
        """The first value that is not finite, in any process, among those added since the last call."""
        new, self._checked = slice(self._checked, None), len(self._values)
        if not self._values[new]:
            return None
        table = processes.mean(torch.stack(self._values[new]))
        bad = ~torch.isfinite(table)
        if not bool(bad.any()):
            return None
        row, column = bad.nonzero()[0].tolist()
        return NonFinite(self._steps[new][row], self.terms[column], float(table[row, column]))

    def means(self, processes: Processes) -> dict[str, float]:
        """Each term's mean over the epoch, and ``train_METRIC``, the task's main metric on the (noisy) labels."""
        result: dict[str, float] = {}
        if self._values:
            result |= zip(self.terms, processes.mean(torch.stack(self._values).mean(0)).tolist(), strict=True)
        if self._metric is not None:
            total, count = processes.mean(self._metric).tolist()
            if count:
                result[f"train_{self._task.main_metric}"] = total / count
        return result
