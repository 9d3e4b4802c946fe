"""The training loop, and all that has to be kept for it to go on exactly. There is one."""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.config import Hardware, Recipe
from tutelage.data.batch import Batch
from tutelage.data.data import Data, Split
from tutelage.data.loader import Batches, mix_seeds
from tutelage.data.orders import Order
from tutelage.errors import NonFiniteError, TutelageError
from tutelage.models.state import check_state, shared_tensors, shared_tensors_error
from tutelage.tasks import Task
from tutelage.training.checkpoint import Checkpoints, restore_rng_state, rng_state, rng_state_restored
from tutelage.training.compiling import Compiling
from tutelage.training.dry_run import dry_run, example_batch, first_non_finite, non_finite_teacher
from tutelage.training.hardware import autocast, place
from tutelage.training.learner import Learner
from tutelage.training.meter import Meter
from tutelage.training.optim import lr_factor, make_optimizer
from tutelage.training.processes import Processes
from tutelage.training.selection import Selection
from tutelage.training.updates import Step, UpdateRule

CHECK_EVERY = 50  # steps between looks for NaN: a look waits for the device

Record = dict[str, Any]
RECORD_FIELDS = {"epoch", "lr", "learners", "forward_passes", "seconds"}
"""The fields of every record."""


class Loop:
    """The state of a fit: everything that has to be kept for it to go on exactly."""

    def __init__(
        self,
        learners: Sequence[Learner],
        data: Data,
        recipe: Recipe,
        hardware: Hardware,
        update: UpdateRule,
        seed: int,
        processes: Processes,
        order: Order,
        streams: Mapping[str, Split],
        task: Task,
    ) -> None:
        _check_learners(learners)
        _check_networks(learners)
        self.learners, self.data, self.recipe, self.hardware = tuple(learners), data, recipe, hardware
        self.update, self.processes, self.task = update, processes, task
        device = torch.device(hardware.device)
        batches = partial(
            Batches,
            batch_size=recipe.batch_size,
            views=data.views,
            device=device,
            rank=processes.rank,
            world=processes.world,
            workers=hardware.workers,
            layout=torch.channels_last if hardware.channels_last else torch.contiguous_format,
        )
        second = any(learner.source is not None and learner.source.second_view for learner in learners)
        self.batches = batches(data.train, seed=seed, order=order, second=second)
        self.streams = {
            name: batches(split, seed=mix_seeds(seed, 4, zlib.crc32(name.encode()))).at
            for name, split in streams.items()
        }
        taught_by = [model for learner in learners if learner.source for model in learner.source.models]
        own = [model for learner in learners for model in (learner.model, learner.deployed)]
        self.models = tuple(dict.fromkeys([*own, *taught_by]))
        self.learning = tuple(learner.model for learner in learners)
        self.teaching = tuple(model for model in self.models if model not in self.learning)
        self.roles = {learner: roles_to_read(learner, learners) for learner in learners}
        # What is built and what is tried draws numbers; training draws the same without it.
        with rng_state_restored():
            batch = example_batch(data, device)
            for models in (*((learner.model, learner.deployed) for learner in learners), *((m,) for m in taught_by)):
                place(*dict.fromkeys(models), hardware=hardware, example=batch.inputs)
            with autocast(hardware):
                dry_run(learners, self.roles, task, data, batch)
        for learner in learners:
            learner.modules.to(device)
        self.optimizers = {
            learner: make_optimizer(recipe, _nonempty(learner, learner.parameters())) for learner in learners
        }
        self.peak = {
            learner: [group["lr"] for group in optimizer.param_groups] for learner, optimizer in self.optimizers.items()
        }
        self.compiling = Compiling(self.models, hardware.compile, recipe.epochs * len(self.batches))
        self.history: list[Record] = []
        self.selection = Selection(task, data, hardware)
        named = isinstance(recipe.optimizer, str)
        contiguous = [model.contiguous for model in self.models]
        self.told = {"seed": seed, "contiguous": contiguous} | recipe.model_dump(
            mode="json", exclude=set() if named else {"optimizer"}
        )

    def epoch(self, epoch: int, checkpoints: Checkpoints | None) -> Record:
        """One pass over the training part."""
        start = time.perf_counter()
        before = self._passes()
        steps = len(self.batches)
        meters = {learner: Meter(learner, self.task) for learner in self.learners}
        for number, batch in enumerate(self.batches.epoch(epoch)):
            place_in_run = epoch * steps + number
            self.compiling.before(place_in_run)
            factor = lr_factor(self.recipe, place_in_run, steps)
            step = self._step(batch, place_in_run, place_in_run / (self.recipe.epochs * steps), factor)
            self.update(step)
            for learner, values in step.term_values.items():
                meters[learner].add(number, values, step.trained_outputs[learner], batch)
            if (number + 1) % CHECK_EVERY == 0 or number + 1 == steps:
                self._check_finite(meters, epoch, checkpoints)
        self._check_weights(epoch, checkpoints)
        lr = float(self.optimizers[self.learners[0]].param_groups[0]["lr"])
        passes = self.processes.total(*(now - then for now, then in zip(self._passes(), before, strict=True)))
        record: Record = {"epoch": epoch + 1, "lr": lr, "learners": {}}
        for learner, meter in meters.items():
            entry = meter.means(self.processes) | self.selection.after_epoch(learner, epoch + 1)
            record["learners"][learner.name] = entry
        record["forward_passes"] = dict(zip(("student", "teacher"), passes, strict=True))
        record["seconds"] = round(time.perf_counter() - start, 3)
        self.history.append(record)
        return record

    def _passes(self) -> tuple[int, int]:
        """How many samples the networks that learn, and those that only teach, have run so far in this process."""
        return sum(model.passes for model in self.learning), sum(model.passes for model in self.teaching)

    def _step(self, batch: Batch, number: int, progress: float, factor: float) -> Step:
        for learner in self.learners:
            learner.train()
            for group, peak in zip(self.optimizers[learner].param_groups, self.peak[learner], strict=True):
                group["lr"] = peak * factor
        return Step(
            batch,
            number,
            progress,
            self.learners,
            streams=self.streams,
            roles=self.roles,
            apply=self._apply,
            autocast=partial(autocast, self.hardware),
        )

    def _apply(self, learner: Learner, loss: Tensor) -> None:
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
        self.processes.average_gradients(parameters)
        if self.recipe.clip is not None:
            nn.utils.clip_grad_norm_(parameters, self.recipe.clip)
        optimizer.step()
        if learner.source is not None:
            learner.source.after_step()

    def _check_finite(self, meters: Mapping[Learner, Meter], epoch: int, checkpoints: Checkpoints | None) -> None:
        for learner, meter in meters.items():
            bad = meter.first_non_finite(self.processes)
            if bad is None:
                continue
            indices = self.batches.indices(epoch, bad.step).tolist()
            shown = ", ".join(map(str, indices[:8])) + (", …" if len(indices) > 8 else "")
            if found := self._non_finite_teacher(learner, epoch * len(self.batches) + bad.step, bad.term):
                raise NonFiniteError(
                    f"epoch {epoch + 1}, step {bad.step + 1}, on the batch of samples [{shown}]: "
                    f"{non_finite_teacher(learner.name, *found)}{_kept(checkpoints)}",
                    indices,
                )
            raise NonFiniteError(
                f"epoch {epoch + 1}, step {bad.step + 1}: term {bad.term!r} of learner {learner.name!r} became "
                f"{bad.value} on the batch of samples [{shown}]; lower the learning rate "
                f"(now {self.peak[learner][0]:g}), set a gradient clip, or look at these samples{_kept(checkpoints)}",
                indices,
            )

    @torch.no_grad()
    def _non_finite_teacher(self, learner: Learner, step: int, term: str) -> tuple[str, float] | None:
        """The role and the value of what a learner's source gives, once more, for a batch if that is not finite."""
        source, view = learner.source, learner.terms[term].view
        roles = {*learner.teacher_roles(), *learner.teacher_roles(view=view)}
        if source is None or source.reads or not roles:
            return None
        with autocast(self.hardware):
            return first_non_finite(source(self.batches.at(step), tuple(roles), {}))

    def _check_weights(self, epoch: int, checkpoints: Checkpoints | None) -> None:
        """A last step can ruin the weights after its loss was still finite; such weights must not be kept."""
        for learner in self.learners:
            owned = [tensor for m in (learner.model, learner.modules) for tensor in (*m.parameters(), *m.buffers())]
            norms = torch.stack(torch._foreach_norm([tensor for tensor in owned if tensor.is_floating_point()]))
            if not bool(torch.isfinite(norms).all()):
                raise NonFiniteError(
                    f"epoch {epoch + 1}: the weights or statistics of learner {learner.name!r} became NaN or infinite; "
                    f"lower the learning rate (now {self.peak[learner][0]:g}) or set a clip{_kept(checkpoints)}"
                )

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes while training, as tensors and plain values."""
        return {
            "told": self.told,
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
        """Go on from there."""
        for name, there in state["told"].items():
            if there != self.told.get(name):
                raise ValueError(f"{name}: {there!r} there, {self.told.get(name)!r} here")
        for learner, kept in zip(self.learners, state["learners"], strict=True):
            learner.model.module.load_state_dict(kept["model"])
            learner.modules.load_state_dict(kept["terms"])
            self.optimizers[learner].load_state_dict(kept["optimizer"])
            if learner.source is not None:
                learner.source.load_state_dict(kept["source"])
        if hasattr(self.update, "load_state_dict"):
            self.update.load_state_dict(state["update"])
        self.selection.load_state_dict(state["selected"])
        self.history = [dict(record) for record in state["history"]]
        names = {learner.name for learner in self.learners}
        for record in self.history:
            if not record.keys() >= RECORD_FIELDS or dict(record["learners"]).keys() != names:
                raise ValueError("its history is none of these learners")
        self.compiling.restore(state.get("compiled"))
        restore_rng_state(state["generators"])


def _check_learners(learners: Sequence[Learner]) -> None:
    names = [learner.name for learner in learners]
    if not names:
        raise TutelageError("fit needs at least one learner")
    if len(set(names)) < len(names):
        raise TutelageError(f"the learners of a fit need different names, got {names}")
    by_model: dict[nn.Module, str] = {}
    for learner in learners:
        if learner.model in by_model:
            raise TutelageError(
                f"learners {by_model[learner.model]!r} and {learner.name!r} train the same model; "
                "make one learner of them, with the terms of both"
            )
        by_model[learner.model] = learner.name
        if any(tensor.is_inference() for tensor in (*learner.model.parameters(), *learner.model.buffers())):
            raise TutelageError(
                f"the model of learner {learner.name!r} was made inside torch.inference_mode(), where weights "
                "record no gradients; make it outside"
            )


def _check_networks(learners: Sequence[Learner]) -> None:
    """Refuse networks that cannot be kept or that a frozen teacher freezes in part."""
    for learner in learners:
        for model in (learner.model, learner.deployed):
            check_state(f"the network of learner {learner.name!r}", model.module)
        halves = {p.dtype for p in learner.parameters() if p.dtype in (torch.float16, torch.bfloat16)}
        if halves:
            raise TutelageError(
                f"the weights of learner {learner.name!r} are {halves.pop()}, in which small updates are lost: convert "
                "the network with .float(); precision='bfloat16' runs float32 weights in bfloat16"
            )
        if learner.source is None:
            continue
        others = [model for model in learner.source.models if model is not learner.model]
        for teacher in (model for model in others if not any(p.requires_grad for p in model.parameters())):
            shared = shared_tensors(learner.model.module, teacher.module)
            if trained := [name for name in shared if learner.trainable is None or learner.trainable(name)]:
                raise TutelageError(shared_tensors_error(f"learner {learner.name!r}", "its teacher", trained))


def _nonempty(learner: Learner, parameters: Any) -> list[nn.Parameter]:
    found = list(parameters)
    if not found:
        raise TutelageError(
            f"learner {learner.name!r} has nothing to train: every parameter is frozen. "
            "Is its model also somebody's frozen teacher, or does trainable=... leave none?"
        )
    return found


def roles_to_read(learner: Learner, cohort: Sequence[Learner]) -> tuple[str, ...]:
    """What to read of a learner's model: what its own terms need, and those of whom it teaches."""
    wanted = list(learner.roles())
    for other in cohort:
        if other.source is not None and learner.model in other.source.reads:
            wanted += other.teacher_roles()
    return tuple(dict.fromkeys(wanted))


def _kept(checkpoints: Checkpoints | None) -> str:
    path = checkpoints.latest() if checkpoints else None
    return f". The last good checkpoint is {path}" if path else ""
