"""Evaluation on the held-out split after each epoch, and the weights of the best epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from tutelage.config import Hardware
from tutelage.data.data import Data
from tutelage.models.tapped import Tapped
from tutelage.tasks import Compute, Task
from tutelage.training.hardware import autocast_dtype
from tutelage.training.learner import Learner


@dataclass(frozen=True)
class Selected:
    """A learner at its best epoch on the held-out split.

    Attributes:
        epoch: counted from 1.
        score: the task's main metric there.
        state: the deployed network's ``state_dict``.
    """

    epoch: int
    score: float
    state: Mapping[str, Tensor] = field(repr=False)


class Selection:
    """Evaluates learners on the held-out split, and saves each one's best weights.

    Args:
        task: the task that evaluates them. Unless ``Learner.evaluated`` says otherwise, a learner is evaluated only if
            one of its terms reads the logits or a role that the task evaluates.
        data: its validation split is used; without one nothing is selected.
        hardware: resolved.
    """

    def __init__(self, task: Task, data: Data, hardware: Hardware) -> None:
        compute = Compute(hardware.device, autocast_dtype(hardware), hardware.workers)
        self.task, self.data, self._compute = task, data, compute
        self.selected: dict[str, Selected] = {}

    def after_epoch(self, learner: Learner, network: Tapped, epoch: int) -> dict[str, float]:
        """The main metric of a learner's network, for the epoch's record; empty where it is not evaluated."""
        roles = (*self.task.roles, "logits") if self.task.roles else ()
        evaluated = learner.reads(roles) if learner.evaluated is None else learner.evaluated
        if self.data.validation is None or not evaluated:
            return {}
        score = self.task.score(network, self.data.validation, self.data, self._compute)
        if math.isnan(score):  # no held-out sample has a label
            return {}
        best = self.selected.get(learner.name)
        if self.task.improves(score, None if best is None else best.score):
            state = {name: value.detach().clone() for name, value in network.module.state_dict().items()}
            self.selected[learner.name] = Selected(epoch, score, state)
        return {f"validation_{self.task.main_metric}": score}

    def state_dict(self) -> dict[str, Any]:
        """What is needed for an exact resume."""
        return {name: (best.epoch, best.score, dict(best.state)) for name, best in self.selected.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state."""
        self.selected = {name: Selected(*best) for name, best in state.items()}
