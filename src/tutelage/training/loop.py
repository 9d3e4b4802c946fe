"""The training loop: epochs, steps, and the state that is needed for exact resume. There is one."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from tutelage.config import Recipe
from tutelage.data.batch import Batch
from tutelage.data.data import Data
from tutelage.errors import TutelageError
from tutelage.tasks import Task
from tutelage.training.checkpoint import restore_rng_state, rng_state
from tutelage.training.compiling import Compiling
from tutelage.training.execution import Execution
from tutelage.training.finite import FiniteChecks
from tutelage.training.learner import Learner, roles_to_read
from tutelage.training.meter import Meter
from tutelage.training.optim import lr_factor, make_optimizer
from tutelage.training.preparation import parameter_options, prepare, trainable_parameters
from tutelage.training.selection import Selection
from tutelage.training.streams import Streams
from tutelage.training.updates import Step, UpdateRule

CHECK_EVERY = 50  # steps between checks for NaN, which wait for the device

Record = dict[str, Any]
RECORD_FIELDS = {"epoch", "lr", "learners", "forward_passes", "seconds"}
"""The fields of every record."""


class Loop:
    """A fit: its learners, optimizers and history.

    Args:
        learners: the cohort, already checked.
        data: the data set that they are tried and evaluated on.
        recipe: epochs, batch size, optimizer and schedule.
        update: the update rule, which does each step.
        task: evaluates the learners on the held-out split.
        streams: the batches.
        execution: where the fit runs.
    """

    def __init__(
        self,
        learners: Sequence[Learner],
        data: Data,
        recipe: Recipe,
        update: UpdateRule,
        task: Task,
        streams: Streams,
        execution: Execution,
    ) -> None:
        self.learners, self.recipe, self.update, self.task = tuple(learners), recipe, update, task
        self.batches, self._streams, self._execution = streams.epochs, streams.others, execution
        teachers = [model for learner in learners if learner.source for model in learner.source.models]
        trained = [model for learner in learners for model in (learner.model, learner.deployed)]
        models = tuple(dict.fromkeys([*trained, *teachers]))
        self._students = tuple(learner.model for learner in learners)
        self._teachers = tuple(model for model in models if model not in self._students)
        self._roles = {learner: roles_to_read(learner, learners) for learner in learners}
        prepare(learners, self._roles, task, data, execution)
        self.optimizers = {
            learner: make_optimizer(recipe, trainable_parameters(learner), parameter_options(learner, recipe))
            for learner in learners
        }
        self._peak_lr = {
            learner: [group["lr"] for group in optimizer.param_groups] for learner, optimizer in self.optimizers.items()
        }
        self._finite = FiniteChecks(
            self.batches, execution, {learner: max(lr) for learner, lr in self._peak_lr.items()}
        )
        self.compiling = Compiling(models, execution.hardware.compile, recipe.epochs * len(self.batches))
        self.selection = Selection(task, data, execution.hardware)
        self.history: list[Record] = []
        has_name = isinstance(recipe.optimizer, str)
        contiguous = [model.contiguous for model in models]
        options = [
            {name: choice.model_dump() for name, choice in learner.parameter_options().items()} for learner in learners
        ]
        self._settings = {"seed": self.batches.seed, "contiguous": contiguous, "options": options} | recipe.model_dump(
            mode="json", exclude=set() if has_name else {"optimizer"}
        )

    def epoch(self, epoch: int) -> Record:
        """Train for one epoch, counted from 0, and return its record."""
        start, passes_before = time.perf_counter(), self._forward_passes()
        steps = len(self.batches)
        meters = {learner: Meter(learner, self.task) for learner in self.learners}
        for number, batch in enumerate(self.batches.epoch(epoch)):
            step = self._step(batch, epoch * steps + number)
            self.update(step)
            for learner, values in step.term_values.items():
                meters[learner].add(number, values, step.trained_outputs[learner], batch)
            if (number + 1) % CHECK_EVERY == 0 or number + 1 == steps:
                self._finite.losses(meters, epoch)
        self._finite.weights(self.learners, epoch)
        processes = self._execution.processes
        counts = [after - before for after, before in zip(self._forward_passes(), passes_before, strict=True)]
        passes = processes.total(*counts)
        lr = max(float(group["lr"]) for group in self.optimizers[self.learners[0]].param_groups)
        record: Record = {"epoch": epoch + 1, "lr": lr, "learners": {}}
        for learner, meter in meters.items():
            entry = meter.means(processes) | self.selection.after_epoch(learner, epoch + 1)
            record["learners"][learner.name] = entry
        record["forward_passes"] = dict(zip(("student", "teacher"), passes, strict=True))
        record["seconds"] = round(time.perf_counter() - start, 3)
        self.history.append(record)
        return record

    def _step(self, batch: Batch, number: int) -> Step:
        """Prepare a step, counted from 0 over the whole fit: compilation, learning rate, train mode."""
        self.compiling.before(number)
        factor = lr_factor(self.recipe, number, len(self.batches))
        for learner in self.learners:
            learner.train()
            for group, peak in zip(self.optimizers[learner].param_groups, self._peak_lr[learner], strict=True):
                group["lr"] = peak * factor
        return Step(
            batch,
            number,
            number / (self.recipe.epochs * len(self.batches)),
            self.learners,
            streams=self._streams,
            roles=self._roles,
            apply=self._apply,
            autocast=self._execution.autocast,
            lr={learner: optimizer.param_groups[0]["lr"] for learner, optimizer in self.optimizers.items()},
        )

    def _apply(self, learner: Learner, loss: Tensor) -> None:
        """Backward pass, gradient averaging and clipping, optimizer step, and the source's reaction."""
        if not loss.requires_grad:
            raise TutelageError(
                f"no weight that learner {learner.name!r} trains acts on what its terms read, "
                f"{', '.join(learner.roles())}; give a network with a layer before that, or name a later layer: "
                'roles={"embedding": ""} is the output'
            )
        optimizer = self.optimizers[learner]
        optimizer.zero_grad(set_to_none=True)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        loss.backward(inputs=parameters)  # type: ignore[no-untyped-call]
        self._execution.processes.average_gradients(parameters)
        if self.recipe.clip is not None:
            nn.utils.clip_grad_norm_(parameters, self.recipe.clip)
        optimizer.step()
        if learner.source is not None:
            learner.source.after_step()

    def _forward_passes(self) -> tuple[int, int]:
        """How many samples students and teachers have run in this process so far."""
        return sum(model.passes for model in self._students), sum(model.passes for model in self._teachers)

    def start_optimizers(self, states: Mapping[str, dict[str, Any]]) -> None:
        """Load copies of optimizers' states, by the learner's name, but keep the options of this fit."""
        for learner, optimizer in self.optimizers.items():
            options = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({**copy.deepcopy(states[learner.name]), "param_groups": options})

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes during training, as tensors and plain values."""
        return {
            "settings": self._settings,
            "learners": [
                {
                    "model": learner.model.module.state_dict(),
                    "terms": learner.modules.state_dict(),
                    "optimizer": self.optimizers[learner].state_dict(),
                    "source": learner.source.state_dict() if learner.source is not None else {},
                }
                for learner in self.learners
            ],
            "update": self.update.state_dict() if hasattr(self.update, "state_dict") else {},
            "selected": self.selection.state_dict(),
            "history": self.history,
            "compiled": self.compiling.decided,
            "generators": rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state.

        Raises:
            ValueError: it is of a fit with other settings or learners.
        """
        for name, saved in state["settings"].items():
            if saved != self._settings.get(name):
                raise ValueError(f"{name}: {saved!r} there, {self._settings.get(name)!r} here")
        for learner, saved in zip(self.learners, state["learners"], strict=True):
            learner.model.module.load_state_dict(saved["model"])
            learner.modules.load_state_dict(saved["terms"])
            self.optimizers[learner].load_state_dict(saved["optimizer"])
            if learner.source is not None:
                learner.source.load_state_dict(saved["source"])
        if hasattr(self.update, "load_state_dict"):
            self.update.load_state_dict(state["update"])
        self.selection.load_state_dict(state["selected"])
        self.history = [dict(record) for record in state["history"]]
        names = {learner.name for learner in self.learners}
        for record in self.history:
            if not record.keys() >= RECORD_FIELDS or dict(record["learners"]).keys() != names:
                raise ValueError("its history is of other learners")
        self.compiling.restore(state.get("compiled"))
        restore_rng_state(state["generators"])
