"""The training loop: epochs, steps, and the state that is needed for exact resume. There is one."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

from torch import Tensor, nn

from tutelage.config import Recipe
from tutelage.data.batch import Batch
from tutelage.data.data import Data
from tutelage.errors import TutelageError
from tutelage.models.random_state import restore_rng_state, rng_state
from tutelage.tasks import Task
from tutelage.training.averages import Averages
from tutelage.training.compiling import Compiling
from tutelage.training.execution import Execution
from tutelage.training.finite import FiniteChecks
from tutelage.training.hardware import grad_scaler
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
        self._changes = streams.changes
        prepare(learners, self._roles, task, data, execution, self._changes)
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
        self.averages = Averages(learners, recipe.ema)
        self._scalers = {learner: grad_scaler(execution.hardware) for learner in learners}
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
            changed = self._changes(batch, epoch * steps + number)
            for part in range(self.recipe.accumulate):
                samples = self._part(changed, part)
                step = self._step(samples, epoch * steps + number, part)
                self.update(step)
                for learner, values in step.term_values.items():
                    meters[learner].add(number, values, step.trained_outputs[learner], samples)
            if (number + 1) % CHECK_EVERY == 0 or number + 1 == steps:
                self._finite.losses(meters, epoch)
        self._finite.weights(self.learners, epoch)
        processes = self._execution.processes
        counts = [after - before for after, before in zip(self._forward_passes(), passes_before, strict=True)]
        passes = processes.total(*counts)
        lr = max(float(group["lr"]) for group in self.optimizers[self.learners[0]].param_groups)
        record: Record = {"epoch": epoch + 1, "lr": lr, "learners": {}}
        for learner, meter in meters.items():
            scores = self.selection.after_epoch(learner, self.averages.network(learner), epoch + 1)
            record["learners"][learner.name] = meter.means(processes) | scores
        record["forward_passes"] = dict(zip(("student", "teacher"), passes, strict=True))
        record["seconds"] = round(time.perf_counter() - start, 3)
        self.history.append(record)
        return record

    def _part(self, batch: Batch, part: int) -> Batch:
        """Part of a batch whose gradients are accumulated: every n-th sample, so that sorted batches stay mixed."""
        return batch if self.recipe.accumulate == 1 else batch.rows(slice(part, None, self.recipe.accumulate))

    def _step(self, batch: Batch, number: int, part: int = 0) -> Step:
        """Prepare a step, counted from 0 over the whole fit: compilation, learning rate, train mode.

        Args:
            batch: the samples of the step, or of one of its parts.
            number: of the step.
            part: of the batch, counted from 0; the weights are updated after the last one.
        """
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
            apply=partial(self._apply, part=part),
            autocast=self._execution.autocast,
            lr={learner: optimizer.param_groups[0]["lr"] for learner, optimizer in self.optimizers.items()},
        )

    def _apply(self, learner: Learner, loss: Tensor, part: int = 0) -> None:
        """Backward pass and, after the last part of the batch, the update of the weights and the source's reaction.

        Gradients are averaged over parts and processes, and clipped.
        """
        if not loss.requires_grad:
            raise TutelageError(
                f"no weight that learner {learner.name!r} trains acts on what its terms read, "
                f"{', '.join(learner.roles())}; give a network with a layer before that, or name a later layer: "
                'roles={"embedding": ""} is the output'
            )
        optimizer, scaler, parts = self.optimizers[learner], self._scalers[learner], self.recipe.accumulate
        if part == 0:
            optimizer.zero_grad(set_to_none=True)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        last = part + 1 == parts
        with self._execution.processes.averaged_gradients(parameters) if last else nullcontext():
            scaled = scaler.scale(loss if parts == 1 else loss / parts)
            scaled.backward(inputs=parameters)  # type: ignore[no-untyped-call]
        if not last:
            return
        if self.recipe.clip is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(parameters, self.recipe.clip)
        scaler.step(optimizer)
        scaler.update()
        if learner.source is not None:
            learner.source.after_step()
        self.averages.after_step(learner)

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
                    "scaler": self._scalers[learner].state_dict(),
                }
                for learner in self.learners
            ],
            "update": self.update.state_dict() if hasattr(self.update, "state_dict") else {},
            "averages": self.averages.state_dict(),
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
            if self._scalers[learner].is_enabled():
                self._scalers[learner].load_state_dict(saved["scaler"])
        if hasattr(self.update, "load_state_dict"):
            self.update.load_state_dict(state["update"])
        self.averages.load_state_dict(state.get("averages", {}))
        self.selection.load_state_dict(state["selected"])
        self.history = [dict(record) for record in state["history"]]
        names = {learner.name for learner in self.learners}
        for record in self.history:
            if not record.keys() >= RECORD_FIELDS or dict(record["learners"]).keys() != names:
                raise ValueError("its history is of other learners")
        self.compiling.restore(state.get("compiled"))
        restore_rng_state(state["generators"])
