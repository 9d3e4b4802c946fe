"""What happens to a run's student before training: its initial weights, and the lines and warnings about it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from tutelage.config import Config
from tutelage.data import Data
from tutelage.errors import NETWORK_ERRORS, TutelageError, TutelageWarning
from tutelage.evaluation import flops
from tutelage.models.tapped import Tapped
from tutelage.runs.initial_weights import InitialWeights
from tutelage.runs.teachers import normalisation_text
from tutelage.tasks import Task

NEGLIGIBLE = 1e6  # FLOPs per input below which costs are not compared; our choice


class StudentStart:
    """Prepares the first student of a run: a function of the new student that returns the one to train.

    It loads the initial weights, if there are any, announces them and the normalisation, and warns of a student that
    costs more than its teachers. Further students of a cohort start at random and are not prepared.

    Args:
        config: names the student.
        data: the student's data.
        weights: the initial weights.
        teachers: to compare costs with.
        task: provides the inputs for measuring costs.
        announce: called with one line on the student.
    """

    def __init__(
        self,
        config: Config,
        data: Data,
        weights: InitialWeights | None,
        teachers: Sequence[Tapped],
        task: Task,
        announce: Callable[[str], None] | None,
    ) -> None:
        self._config, self._data, self._weights = config, data, weights
        self._teachers, self._task, self._announce = teachers, task, announce
        self._announced = False
        self.record: dict[str, Any] = {}
        """The entry ``init`` of ``result.json``; empty without initial weights."""

    def __call__(self, student: Tapped) -> Tapped:
        """Prepare a new student; its lines and warnings are given once.

        Raises:
            TutelageError: the initial weights do not fit.
        """
        facts = []
        if self._weights is not None:
            student, new = self._weights.load(student, self._data)
            self.record = {"init": self._weights.record(new)}
            facts.append(self._weights.describe(new, self._data))
        if not self._announced:
            self._announced = True
            warn_if_costlier(student, self._teachers, self._task, self._data, self._config.student)
            if self._announce is not None:
                text = normalisation_text(student, self._origin(student), self._data.modality.noun)
                self._announce("; ".join([f"student {self._config.student}: {text}", *facts]))
        return student

    def _origin(self, student: Tapped) -> str:
        """Where a student's normalisation comes from, in a few words."""
        if student.has_normalisation(*self._data.mean_std):
            return f"those of {self._data.name}"
        if self._weights is not None and self._weights.header.mean:
            return f"recorded with {self._weights.name}"
        return "of the published weights" if self._config.pretrained else "its own"


def warn_if_costlier(student: Tapped, teachers: Sequence[Tapped], task: Task, data: Data, name: str) -> None:
    """Warn of a student that costs more FLOPs, or has more parameters, than every teacher.

    Students of less than a million FLOPs per input give no warning.

    Args:
        student: the student.
        teachers: the teachers; without any there is no warning.
        task: provides the example inputs.
        data: determines the shape of the example inputs.
        name: the student's name, for the warning.
    """
    if not teachers:
        return
    try:
        operations, *others = (flops(model, task.example(model, data)) for model in (student, *teachers))
    except (*NETWORK_ERRORS, TutelageError):
        return  # generators, and networks whose errors the dry run reports
    parameters, *other_parameters = (sum(value.numel() for value in m.parameters()) for m in (student, *teachers))
    if operations <= NEGLIGIBLE:
        return
    if operations > max(others):
        excess = (
            f"costs {operations / 1e6:,.1f} MFLOPs per {data.modality.sample} and its teacher {max(others) / 1e6:,.1f}"
        )
    elif parameters > max(other_parameters):
        excess = f"has {parameters:,} parameters and its teacher {max(other_parameters):,}"
    else:
        return
    warnings.warn(
        f"the student {name} {excess}: choose a smaller student if it should be cheaper; "
        "tutelage models lists networks",
        TutelageWarning,
        stacklevel=2,
    )
