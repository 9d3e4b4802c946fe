"""What a method is given: data, a way to make students, teachers, and ``fit``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tutelage.config import Hardware, Recipe
from tutelage.data.data import Data, Split
from tutelage.data.loader import evaluation_batches, mix_seeds
from tutelage.data.orders import Order, shuffled
from tutelage.errors import NETWORK_ERRORS, TutelageError, one_line
from tutelage.evaluation.predict import predict, predict_roles
from tutelage.files import atomic_write
from tutelage.models.state import dtype_hint, shared_tensors, shared_tensors_error
from tutelage.models.tapped import Tapped
from tutelage.sources import Frozen, TeacherCache
from tutelage.tasks import Task, find_task, task_of_network
from tutelage.terms.term import Term, Weighted
from tutelage.training.checkpoint import Checkpoints, rng_state_restored, seeded
from tutelage.training.execution import Execution
from tutelage.training.fit import FitResult, fit, make_loop
from tutelage.training.hardware import place, resolve
from tutelage.training.learner import Learner
from tutelage.training.loop import Record
from tutelage.training.processes import Processes
from tutelage.training.selection import Selected
from tutelage.training.updates import UpdateRule, together


def initial_weights(seed: int, number: int = 0) -> AbstractContextManager[None]:
    """Within it, the global random generators draw the weights of the student of this number."""
    return seeded(mix_seeds(seed, 2, number))


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
        teacher_cache: caches the teachers' outputs; without one the teachers run in each step.
        report: called with a record an epoch, which names the number of its fit.
        check_labels: whether to refuse labels that the task cannot be trained by, a class without a sample for
            instance, where a term reads labels.
        task: what methods that name no task train for; what the data's targets are for unless given.
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
        teacher_cache: TeacherCache | None = None,
        report: Callable[[Record], None] | None = None,
        processes: Processes | None = None,
        check_labels: bool = False,
        task: Task | None = None,
    ) -> None:
        self._check_labels = check_labels
        self.data, self.recipe, self.hardware = data, recipe or Recipe(), hardware or Hardware()
        self.seed, self.folder, self.teacher_cache = seed, folder, teacher_cache
        self.processes = processes or Processes.current(self.hardware.device)
        self._student, self._teachers, self._report, self._write = student, tuple(teachers), report, write
        self.task = task or find_task(data.targets.task)
        """What is asked of the student: what the data's targets are for, unless the method is for another task."""
        self._begun = False
        self.notes: dict[str, Any] = {}
        self.fits: list[FitResult] = []
        self.selected: dict[Tapped, Selected] = {}

    def begin(self, task: Task) -> None:
        """Train for this task.

        Raises:
            TutelageError: the data cannot be evaluated for it.
        """
        task.check_data(self.data)
        self.task, self._begun = task, True

    def note(self, **values: Any) -> None:
        """Keep what the method found out that is no metric, under ``notes`` in ``result.json``: plain JSON values."""
        self.notes |= values

    @property
    def epochs(self) -> int:
        """How many epochs the run has in all."""
        return self.recipe.epochs

    def student(self, number: int = 0) -> Tapped:
        """A student with its first weights.

        Those of number 0 depend on the seed alone, so that students of one seed start alike whatever the method; each
        further number has other ones.
        """
        with initial_weights(self.seed, number):
            model = self._student()
        self._check_unshared(model)
        return self._suited(model)

    def _check_unshared(self, student: Tapped) -> None:
        """Refuse a student with parts of a teacher, which would be frozen with it, or change it."""
        for teacher in self._teachers:
            if shared := shared_tensors(student.module, teacher.module):
                raise TutelageError(shared_tensors_error("the student", "its teacher", shared))

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
            self._suited(teacher)
        return self._teachers

    def _suited(self, model: Tapped) -> Tapped:
        """Refuse a network that cannot be meant for the task of the method at work."""
        if self._begun:
            other = task_of_network(model.module)
            if other is not None and other is not self.task:
                raise TutelageError(
                    f"{type(model.module).__name__} is a network for {other.name}, and this method is for "
                    f"{self.task.name}; give it another network, or choose a method for {other.name}"
                )
            self.task.check_network(model)
        return model

    def example(self, model: Tapped, count: int = 2) -> Tensor:
        """Constant inputs of a network, where it is: what operations on networks and cost estimates run it on."""
        return self.task.example(model, self.data, count)

    @property
    def label_task(self) -> Task:
        """Whose losses train by labels and soft targets: of a task without one, what the data's targets are for."""
        return self.task if self.task.has_label_loss else find_task(self.data.targets.task)

    def label_terms(self, kd_alpha: float = 0.0, kd_temperature: float = 4.0) -> dict[str, Term | Weighted]:
        """The task's supervised loss as a term; with ``kd_alpha``, Hinton's: (1 - alpha) label loss + alpha T^2 KL.

        Of a task without one, clustering for instance, it is that of the task which the data's targets are for.

        Raises:
            TutelageError: there is no label loss or, where ``kd_alpha`` is above 0, no soft targets.
        """
        task = self.label_task
        terms: dict[str, Term | Weighted] = {task.loss_name: (1 - kd_alpha) * task.label_loss()}
        return terms | {"kd": kd_alpha * task.soft_targets(kd_temperature)} if kd_alpha else terms

    def frozen(self, *teachers: Tapped) -> Frozen:
        """Teachers as a source, which reads the run's cache if it has one."""
        return Frozen(*teachers, cache=self.teacher_cache)

    def trace(self, model: Tapped) -> Tapped:
        """Find a network's roles, by showing it two training images."""
        part = self.data.train.subset(torch.arange(min(2, len(self.data.train))))
        inputs = next(evaluation_batches(part, workers=0)).inputs.to(model.mean.device)
        try:
            return model.trace(inputs)
        except NETWORK_ERRORS as error:
            noun = self.data.modality.noun
            raise TutelageError(
                f"{type(model.module).__name__} cannot take {noun} of shape {self.data.input_shape}: "
                f"{one_line(error)}{dtype_hint(model) or f'; give it one for such {noun}'}"
            ) from error

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

    def predict(self, model: Tapped, split: Split, roles: Sequence[str] = ("logits",)) -> Tensor:
        """What a network gives for a part of the data under these roles, side by side: eval mode, no augmentation.

        Returns:
            (N, C) logits, or (N, K) of roles that are vectors; float32 on the CPU.
        """
        hardware = resolve(self.hardware, self.processes)
        with rng_state_restored():
            example = next(evaluation_batches(split.subset(torch.arange(min(2, len(split)))), workers=0)).inputs
            place(model, hardware=hardware, example=example)
        if tuple(roles) == ("logits",):
            return predict(model, split, device=hardware.device, workers=hardware.workers).cpu()
        return predict_roles(model, split, roles, device=hardware.device).cpu()

    def check(self, *learners: Learner) -> None:
        """Refuse now what a later fit of these learners will refuse, before an earlier fit has taken its time.

        Raises:
            TutelageError: as ``fit``.
        """
        self.check_labels(learners)
        execution = Execution.on(self.hardware, self.processes)
        with seeded(mix_seeds(self.seed, 1)):
            make_loop(learners, self.data, self.recipe, execution, seed=self.seed, task=self.task)

    def check_labels(self, learners: Sequence[Learner]) -> None:
        """Refuse training labels that the task cannot be trained by, if a term of these learners reads labels."""
        if not self._check_labels or not any(learner.reads_labels for learner in learners):
            return
        if not bool(self.data.targets.labelled(self.data.train.labels).any()):
            raise TutelageError(
                f"no training sample of {self.data.name} has a label, and this method reads labels; label some, or "
                "give the teacher's outputs all the weight, where the method can: --set alpha=1 or --set kd_alpha=1"
            )
        self.task.check_labels(self.data)

    def fit(
        self,
        *learners: Learner,
        update: UpdateRule = together,
        data: Data | None = None,
        order: Order = shuffled,
        streams: Mapping[str, Split] | None = None,
        until: Callable[[Record], bool] | None = None,
        task: Task | None = None,
        **changes: Any,
    ) -> FitResult:
        """Train learners together, in place.

        Args:
            learners: the cohort.
            update: how it steps.
            data: what to train on, where that is not the run's own.
            order, streams, until: as in ``tutelage.training.fit``.
            task: what the learners are evaluated by in this fit, where that is not the run's own.
            changes: fields of the recipe that differ in this fit, ``epochs`` for instance.
        """
        self.check_labels(learners)
        number = len(self.fits)
        recipe = self.recipe.replace(**changes) if changes else self.recipe

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
            task=self.task if task is None else task,
        )
        self.fits.append(fitted)
        for learner in learners:
            self.selected.pop(learner.deployed, None)
            if learner.name in fitted.selected:
                self.selected[learner.deployed] = fitted.selected[learner.name]
        return fitted
