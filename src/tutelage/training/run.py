"""What a method is given: data, a way to make students, teachers, and ``fit``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tutelage.config import Hardware, Recipe
from tutelage.data.data import Data, Split, check_every_class_taught
from tutelage.data.loader import in_order, mix
from tutelage.data.orders import Order, shuffled
from tutelage.errors import TutelageError
from tutelage.evaluation.predict import predict
from tutelage.files import atomic_write
from tutelage.models.generator import Generator
from tutelage.models.state import shared_names, shared_text
from tutelage.models.tapped import Tapped
from tutelage.sources import AnswerStore, Frozen
from tutelage.sources.source import ask
from tutelage.training.checkpoint import Checkpoints, generators_restored, seeded
from tutelage.training.fit import Fitted, fit
from tutelage.training.hardware import place, resolve
from tutelage.training.learner import Learner
from tutelage.training.loop import Loop, Record, Selected
from tutelage.training.processes import Processes
from tutelage.training.side_by_side import Seat
from tutelage.training.updates import UpdateRule, together


def first_weights(seed: int, number: int = 0) -> AbstractContextManager[None]:
    """Within it, the global random generators draw the weights of the student of this number."""
    return seeded(mix(seed, 2, number))


class Run:
    """One training of one student by one method.

    A method is a function of a run that calls ``run.fit`` as often as its paper trains. The calls are numbered: when a
    run in a folder is started again, a finished fit is loaded and an unfinished one goes on, exactly.

    Args:
        data: what to train on.
        student: makes a student with fresh weights, each time it is called.
        teachers: trained networks, if there are any.
        recipe, hardware: how and on what to train.
        seed: of weights, batches and whatever else is drawn.
        folder: where checkpoints go; without one nothing is kept.
        write: writes a whole file in that folder at once.
        answers: where the teachers' answers are kept and found; without one they are asked each time.
        report: called with a record an epoch, which names the number of its fit.
        seat: the run's place among those that train side by side.
    """

    def __init__(
        self,
        data: Data,
        student: Callable[[], Tapped],
        teachers: Sequence[Tapped] = (),
        *,
        recipe: Recipe | None = None,
        hardware: Hardware | None = None,
        seed: int = 0,
        folder: Path | None = None,
        write: Callable[[Path, bytes], None] = atomic_write,
        answers: AnswerStore | None = None,
        report: Callable[[Record], None] | None = None,
        processes: Processes | None = None,
        seat: Seat | None = None,
    ) -> None:
        self.data, self.recipe, self.hardware = data, recipe or Recipe(), hardware or Hardware()
        self.seed, self.folder, self.answers, self.seat = seed, folder, answers, seat
        self.processes = processes or Processes.current(self.hardware.device)
        self._student, self._teachers, self._report, self._write = student, tuple(teachers), report, write
        self.trains: str | None = None
        """What kind of network the method at work trains; one of another kind is refused."""
        self.fits: list[Fitted] = []
        self.selected: dict[Tapped, Selected] = {}

    @property
    def epochs(self) -> int:
        """How many epochs the run has in all."""
        return self.recipe.epochs

    def student(self, number: int = 0) -> Tapped:
        """A student with its first weights.

        Those of number 0 depend on the seed alone, so that students of one seed start alike whatever the method; each
        further number has other ones.
        """
        with first_weights(self.seed, number):
            model = self._student()
        self._check_unshared(model)
        return self._of_its_kind(model)

    def _check_unshared(self, student: Tapped) -> None:
        """Refuse a student with parts of a teacher, which would be frozen with it, or change it."""
        for teacher in self._teachers:
            if shared := shared_names(student.module, teacher.module):
                raise TutelageError(shared_text("the student", "its teacher", shared))

    def teacher(self) -> Tapped:
        """The teacher, for a method that reads the layers of one."""
        if len(self.teachers()) > 1:
            raise TutelageError(f"this method reads one teacher's layers and got {len(self._teachers)}; give it one")
        return self._teachers[0]

    def teachers(self) -> tuple[Tapped, ...]:
        """The teachers; at least one."""
        if not self._teachers:
            raise TutelageError("this method needs a teacher: give a trained run's folder with --teacher (teacher=...)")
        for teacher in self._teachers:
            self._of_its_kind(teacher)
        return self._teachers

    def _of_its_kind(self, model: Tapped) -> Tapped:
        kind = "generator" if isinstance(model, Generator) else "classifier"
        if self.trains not in (None, kind):
            raise TutelageError(
                f"{type(model.module).__name__} is a {kind}, and this method is for {self.trains}s; "
                f"give it a {self.trains}, or choose a method for {kind}s"
            )
        return model

    def frozen(self, *teachers: Tapped) -> Frozen:
        """Teachers as a source, whose answers come from the run's store if it has one, or from others' questions."""
        return Frozen(*teachers, store=self.answers, ask=self.seat.ask if self.seat else ask)

    def trace(self, model: Tapped) -> Tapped:
        """Find a network's roles, by showing it two training images."""
        part = self.data.train.subset(torch.arange(min(2, len(self.data.train))))
        return model.trace(next(in_order(part, workers=0)).inputs.to(model.mean.device))

    def paired_maps(self, student: Tapped, teacher: Tapped) -> tuple[tuple[str, str], ...]:
        """As ``paired_stages``, with the stems before them where both networks have one left to pair."""
        self.paired_stages(student, teacher)
        count = min(len(student.maps), len(teacher.maps))
        return tuple(zip(student.maps[-count:], teacher.maps[-count:], strict=True))

    def paired_stages(self, student: Tapped, teacher: Tapped) -> tuple[tuple[str, str], ...]:
        """(student role, teacher role) of the stages that correspond: one to one, counted from the last."""
        for who, model in (("student", student), ("teacher", teacher)):
            if not self.trace(model).stages:
                raise TutelageError(
                    f"the {who}, {type(model.module).__name__}, has no feature maps to compare; it has "
                    f'{", ".join(model.taps)}. Name layers that have, for instance roles={{"stage1": "layer1"}}'
                )
        count = min(len(student.stages), len(teacher.stages))
        return tuple(zip(student.stages[-count:], teacher.stages[-count:], strict=True))

    def predict(self, model: Tapped, split: Split) -> Tensor:
        """A network's logits for a part of the data, (N, C) float32 on the CPU: eval mode, no augmentation."""
        hardware = resolve(self.hardware, self.processes)
        with generators_restored():
            example = next(in_order(split.subset(torch.arange(min(2, len(split)))), workers=0)).inputs
            place(model, hardware=hardware, example=example)
        return predict(model, split, device=hardware.device, workers=hardware.workers).cpu()

    def check(self, *learners: Learner) -> None:
        """Refuse now what a later fit of these learners will refuse, before an earlier fit has taken its time.

        Raises:
            TutelageError: as ``fit``.
        """
        self.check_labels(learners)
        hardware = resolve(self.hardware, self.processes)
        with seeded(mix(self.seed, 1)):
            Loop(learners, self.data, self.recipe, hardware, together, self.seed, self.processes, shuffled, {}, None)

    def check_labels(self, learners: Sequence[Learner]) -> None:
        """Refuse data in which a class has no labelled training sample, if a term of these learners needs labels."""
        if any(learner.reads_labels for learner in learners):
            check_every_class_taught(self.data)

    def fit(
        self,
        *learners: Learner,
        update: UpdateRule = together,
        data: Data | None = None,
        order: Order = shuffled,
        streams: Mapping[str, Split] | None = None,
        until: Callable[[Record], bool] | None = None,
        **changes: Any,
    ) -> Fitted:
        """Train learners together, in place.

        Args:
            learners: the cohort.
            update: how it steps.
            data: what to train on, where that is not the run's own.
            order, streams, until: as in ``tutelage.training.fit``.
            changes: fields of the recipe that differ in this fit, ``epochs`` for instance.
        """
        self.check_labels(learners)
        number = len(self.fits)
        recipe = self.recipe.but(**changes) if changes else self.recipe

        def report(record: Record) -> None:
            if self._report:
                self._report({"fit": number, "epochs": recipe.epochs, **record})

        folder = self.folder / "checkpoints" if self.folder else None
        checkpoints = Checkpoints(folder, number, write=self._write) if folder else None
        fitted = fit(
            *learners,
            data=self.data if data is None else data,
            recipe=recipe,
            hardware=self.hardware,
            update=update,
            order=order,
            streams=streams,
            until=until,
            seed=self.seed,
            checkpoints=checkpoints,
            report=report,
            processes=self.processes,
            seat=self.seat,
        )
        self.fits.append(fitted)
        for learner in learners:
            self.selected.pop(learner.deployed, None)
            if learner.name in fitted.selected:
                self.selected[learner.deployed] = fitted.selected[learner.name]
        return fitted
