"""The argument of every method: data, students, teachers, and ``fit``."""

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
from tutelage.models import zoo
from tutelage.models.random_state import rng_state_restored, seeded
from tutelage.models.state import dtype_hint, shared_tensors, shared_tensors_error
from tutelage.models.tapped import Tapped
from tutelage.sources import Frozen, TeacherCache
from tutelage.tasks import Task, find_task, task_of_network
from tutelage.terms.term import Term, Weighted
from tutelage.training.checkpoint import Checkpoints
from tutelage.training.execution import Execution
from tutelage.training.fit import FitResult, fit, make_loop
from tutelage.training.hardware import place
from tutelage.training.learner import Learner
from tutelage.training.loop import Record
from tutelage.training.processes import Processes
from tutelage.training.selection import Selected
from tutelage.training.updates import UpdateRule, together


def initial_weights(seed: int, number: int = 0) -> AbstractContextManager[None]:
    """A context that seeds the global random generators for the initial weights of the student of this number."""
    return seeded(mix_seeds(seed, 2, number))


class Run:
    """One training of one student by one method.

    A method is a function of a run that calls ``run.fit`` as often as its paper trains. The calls are numbered: when a
    run in a folder is started again, finished fits are loaded and an unfinished fit resumes exactly.

    Args:
        data: the data set.
        student: returns a student with new initial weights.
        teachers: trained networks, if any.
        recipe, hardware: how and on what to train.
        seed: of weights, batches and all other random numbers.
        folder: the folder of checkpoints; without one nothing is saved.
        write: writes a file in that folder atomically.
        teacher_cache: caches the teachers' outputs; without one the teachers run in each step.
        report: called with a record per epoch, which has the number of its fit.
        start: called with the new student of number 0; returns the one to train, for example with loaded weights.
        check_labels: whether to refuse labels that the task cannot be trained on, for example a class without samples,
            if a term reads labels.
        task: the task of methods that declare none; by default that of the data's targets.
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
        start: Callable[[Tapped], Tapped] | None = None,
        check_labels: bool = False,
        task: Task | None = None,
    ) -> None:
        self._check_labels, self._start = check_labels, start
        self.data, self.recipe, self.hardware = data, recipe or Recipe(), hardware or Hardware()
        self.seed, self.folder, self.teacher_cache = seed, folder, teacher_cache
        self.processes = processes or Processes.current(self.hardware.device)
        self._student, self._teachers, self._report, self._write = student, tuple(teachers), report, write
        self.task = task or find_task(data.targets.task)
        """The task of the student: that of the method, or else of the data's targets."""
        self._started = False
        self.notes: dict[str, Any] = {}
        self.samples: dict[str, Tensor] = {}
        self.fits: list[FitResult] = []
        self.selected: dict[Tapped, Selected] = {}

    def begin(self, task: Task) -> None:
        """Set the task of the run.

        Raises:
            TutelageError: the task cannot be evaluated on the data.
        """
        task.check_data(self.data)
        self.task, self._started = task, True

    def note(self, **values: Any) -> None:
        """Save results of the method that are no metrics under ``notes`` in ``result.json``: plain JSON values."""
        self.notes |= values

    def note_samples(self, **values: Tensor) -> None:
        """Save results of the method for each sample of the training split, as ``samples.safetensors``.

        Args:
            values: (N, ...) tensors by name, in the order of the split.

        Raises:
            ValueError: a tensor has another length.
        """
        for name, value in values.items():
            if len(value) != len(self.data.train):
                raise ValueError(f"{name} has {len(value)} rows for {len(self.data.train)} training samples")
            self.samples[name] = value.detach().cpu().contiguous()

    @property
    def epochs(self) -> int:
        """The number of epochs of the recipe."""
        return self.recipe.epochs

    def student(self, number: int = 0) -> Tapped:
        """Return a student with its initial weights.

        They depend on the seed and the number alone, so students of one seed and number are equal in all methods. Only
        the student of number 0 starts from the weights that a configuration names; others are drawn.
        """
        with initial_weights(self.seed, number):
            model = self._student()
            if number == 0 and self._start is not None:
                model = self._start(model)
        self._check_unshared(model)
        return self._checked(model)

    def network(self, name: str, number: int) -> Tapped:
        """Return a built-in network (``models/zoo.py``) for the run's data, with the normalisation of the data.

        Its initial weights depend on the seed and the number alone, as those of the student of this number.

        Raises:
            TutelageError: there is no such network.
        """
        data = self.data
        with initial_weights(self.seed, number):
            module = zoo.build(name, num_classes=data.num_classes, input_shape=data.input_shape, modality=data.modality)
        return self._checked(Tapped(module, *data.mean_std))

    def _check_unshared(self, student: Tapped) -> None:
        """Refuse a student that shares tensors with a teacher."""
        for teacher in self._teachers:
            if shared := shared_tensors(student.module, teacher.module):
                raise TutelageError(shared_tensors_error("the student", "its teacher", shared))

    def teacher(self) -> Tapped:
        """Return the only teacher, for methods that read layers of one."""
        if len(self.teachers()) > 1:
            raise TutelageError(f"this method reads one teacher's layers and got {len(self._teachers)}; give it one")
        return self._teachers[0]

    def teachers(self) -> tuple[Tapped, ...]:
        """Return the teachers, at least one."""
        if not self._teachers:
            raise TutelageError("this method needs a teacher: give a trained run's folder with --teacher (teacher=...)")
        for teacher in self._teachers:
            self._checked(teacher)
        return self._teachers

    def _checked(self, model: Tapped) -> Tapped:
        """Return a network, unless it is for another task than the method."""
        if self._started:
            other = task_of_network(model.module)
            if other is not None and other is not self.task:
                raise TutelageError(
                    f"{type(model.module).__name__} is a network for {other.name}, and this method is for "
                    f"{self.task.name}; give it another network, or choose a method for {other.name}"
                )
            self.task.check_network(model)
        return model

    def example(self, model: Tapped, count: int = 2) -> Tensor:
        """Constant inputs of a network, on its device, for operations on networks and cost estimates."""
        return self.task.example(model, self.data, count)

    @property
    def label_task(self) -> Task:
        """The task of the label loss and soft targets: the run's if it has a label loss, or else the data's."""
        return self.task if self.task.has_label_loss else find_task(self.data.targets.task)

    def label_terms(self, kd_alpha: float = 0.0, kd_temperature: float = 4.0) -> dict[str, Term | Weighted]:
        """The label loss as a term; with ``kd_alpha``, Hinton's loss: (1 - alpha) label loss + alpha T^2 KL.

        For a task without label loss, such as clustering, that of the data's targets is used.

        Raises:
            TutelageError: there is no label loss or, if ``kd_alpha`` is above 0, no loss on soft targets.
        """
        task = self.label_task
        terms: dict[str, Term | Weighted] = {task.loss_name: (1 - kd_alpha) * task.label_loss()}
        return terms | {"kd": kd_alpha * task.soft_targets(kd_temperature)} if kd_alpha else terms

    def frozen(self, *teachers: Tapped) -> Frozen:
        """Teachers as a source, with the run's cache of teacher outputs if there is one."""
        return Frozen(*teachers, cache=self.teacher_cache)

    def trace(self, model: Tapped) -> Tapped:
        """Find a network's roles in a forward pass of two training samples."""
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
        """Corresponding feature maps, stems included, as (student role, teacher role), counted from the last."""
        self.paired_stages(student, teacher)
        count = min(len(student.maps), len(teacher.maps))
        return tuple(zip(student.maps[-count:], teacher.maps[-count:], strict=True))

    def paired_stages(self, student: Tapped, teacher: Tapped) -> tuple[tuple[str, str], ...]:
        """Corresponding stages as (student role, teacher role), counted from the last."""
        for who, model in (("student", student), ("teacher", teacher)):
            if not self.trace(model).stages:
                raise TutelageError(
                    f"the {who}, {type(model.module).__name__}, has no feature maps to compare; it has "
                    f'{", ".join(model.taps)}. Name layers that have, for example roles={{"stage1": "layer1"}}'
                )
        count = min(len(student.stages), len(teacher.stages))
        return tuple(zip(student.stages[-count:], teacher.stages[-count:], strict=True))

    def predict(self, model: Tapped, split: Split, roles: Sequence[str] = ("logits",)) -> Tensor:
        """Concatenate a network's outputs of these roles for a split, in eval mode and without augmentation.

        Returns:
            (N, C) logits, or (N, K) of roles that are vectors; float32 on the CPU.
        """
        hardware = self._execution().hardware
        with rng_state_restored():
            example = next(evaluation_batches(split.subset(torch.arange(min(2, len(split)))), workers=0)).inputs
            place(model, hardware=hardware, example=example)
        if tuple(roles) == ("logits",):
            return predict(model, split, device=hardware.device, workers=hardware.workers).cpu()
        return predict_roles(model, split, roles, device=hardware.device).cpu()

    def check(self, *learners: Learner) -> None:
        """Check the learners of a later fit, so that errors appear before an earlier fit starts.

        Raises:
            TutelageError: as ``fit``.
        """
        self.check_labels(learners)
        with seeded(mix_seeds(self.seed, 1)):
            make_loop(learners, self.data, self.recipe, self._execution(), seed=self.seed, task=self.task)

    def check_labels(self, learners: Sequence[Learner]) -> None:
        """Refuse training labels that the task cannot be trained on, if a term of these learners reads labels."""
        if not self._check_labels or not any(learner.reads_labels for learner in learners):
            return
        if not bool(self.data.targets.labelled(self.data.train.labels).any()):
            raise TutelageError(
                f"no training sample of {self.data.name} has a label, and this method reads labels; label some, or "
                "give the teacher's outputs all the weight, where the method can: --set alpha=1 or --set kd_alpha=1"
            )
        self.task.check_labels(self.data)

    def _execution(self, number: int | None = None) -> Execution:
        """The execution of the fit of this number; without a number, one that saves no checkpoints."""
        if self.folder is None or number is None:
            checkpoints = None
        else:
            checkpoints = Checkpoints(self.folder / "checkpoints", number, write=self._write)
        return Execution.on(self.hardware, self.processes, checkpoints)

    def fit(
        self,
        *learners: Learner,
        update: UpdateRule = together,
        data: Data | None = None,
        order: Order = shuffled,
        streams: Mapping[str, Split] | None = None,
        until: Callable[[Sequence[Record]], bool] | None = None,
        optimizers: Mapping[str, dict[str, Any]] | None = None,
        task: Task | None = None,
        **changes: Any,
    ) -> FitResult:
        """Train learners together, in place.

        Args:
            learners: the cohort.
            update: how the cohort takes a step.
            data: the data set, by default the run's.
            order, streams, until, optimizers: as in ``tutelage.training.fit``.
            task: the task that evaluates the learners in this fit, by default the run's.
            changes: fields of the recipe that differ in this fit, for example ``epochs``.
        """
        self.check_labels(learners)
        number = len(self.fits)
        recipe = self.recipe.replace(**changes) if changes else self.recipe

        def report(record: Record) -> None:
            if self._report:
                self._report({"fit": number, "epochs": recipe.epochs, **record})

        fitted = fit(
            *learners,
            data=self.data if data is None else data,
            recipe=recipe,
            execution=self._execution(number),
            update=update,
            order=order,
            streams=streams,
            until=until,
            optimizers=optimizers,
            seed=self.seed,
            report=report,
            task=self.task if task is None else task,
        )
        self.fits.append(fitted)
        for learner in learners:
            self.selected.pop(learner.deployed, None)
            if learner.name in fitted.selected:
                self.selected[learner.deployed] = fitted.selected[learner.name]
        return fitted
