"""What one learner's epoch comes to, kept on the device until somebody looks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.data.batch import UNLABELLED
from tutelage.training.learner import Learner
from tutelage.training.processes import Processes


@dataclass(frozen=True, slots=True)
class NotFinite:
    """A value that is NaN or infinite, and where it came up."""

    step: int
    term: str
    value: float


class Meter:
    """The terms' values and the right answers of one learner in one epoch.

    An update rule need not step every learner on every batch: only the steps it was trained on count.
    """

    def __init__(self, learner: Learner, device: torch.device) -> None:
        self.terms = list(learner.terms)
        self._values: list[Tensor] = []
        self._steps: list[int] = []
        self._looked = 0
        self._right, self._labelled = torch.zeros(2, 1, device=device).unbind()
        self._answers = False

    def add(self, step: int, values: Tensor, logits: Tensor | None, targets: Tensor) -> None:
        """Take in one step: each term's value (terms,), the logits (B, C) if there were any, and the targets."""
        self._values.append(values)
        self._steps.append(step)
        if logits is not None:
            self._answers = True
            targets = targets if targets.ndim == 1 else targets.argmax(1)
            labelled = targets != UNLABELLED
            self._right += ((logits.detach().argmax(1) == targets) & labelled).sum()
            self._labelled += labelled.sum()

    def first_not_finite(self, processes: Processes) -> NotFinite | None:
        """The first value that is not finite, in any process, among those added since the last look."""
        new, self._looked = slice(self._looked, None), len(self._values)
        if not self._values[new]:
            return None
        table = processes.mean(torch.stack(self._values[new]))
        bad = ~torch.isfinite(table)
        if not bool(bad.any()):
            return None
        row, column = bad.nonzero()[0].tolist()
        return NotFinite(self._steps[new][row], self.terms[column], float(table[row, column]))

    def means(self, processes: Processes) -> dict[str, float]:
        """Each term's mean over the epoch, and the accuracy on the labels given."""
        result: dict[str, float] = {}
        if self._values:
            result |= zip(self.terms, processes.mean(torch.stack(self._values).mean(0)).tolist(), strict=True)
        if self._answers:
            right, labelled = processes.mean(torch.cat([self._right, self._labelled])).tolist()
            if labelled:
                result["train_accuracy"] = right / labelled
        return result
