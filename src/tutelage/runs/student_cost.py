"""A warning about a student that costs more than its teacher."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

from tutelage.data import Data
from tutelage.errors import NETWORK_ERRORS, TutelageError, TutelageWarning
from tutelage.evaluation import flops
from tutelage.models.tapped import Tapped
from tutelage.tasks import Task

NEGLIGIBLE = 1e6  # FLOPs per image below which costs are not compared; our choice


def warn_if_costlier(
    make: Callable[[], Tapped], teachers: Sequence[Tapped], task: Task, data: Data, student: str
) -> Callable[[], Tapped]:
    """Wrap a student factory: its first student gives a warning if it costs more FLOPs than every teacher.

    Students of less than a million FLOPs per image give no warning.

    Args:
        make: returns a new student.
        teachers: the teachers; without any there is no warning.
        task: provides the example inputs.
        data: determines the shape of the example inputs.
        student: the student's name, for the warning.
    """
    warned = not teachers

    def make_and_compare() -> Tapped:
        nonlocal warned
        model = make()
        if not warned:
            warned = True
            _warn(student, model, teachers, task, data)
        return model

    return make_and_compare


def _warn(name: str, student: Tapped, teachers: Sequence[Tapped], task: Task, data: Data) -> None:
    try:
        costs = [flops(model, task.example(model, data)) for model in (student, *teachers)]
    except (*NETWORK_ERRORS, TutelageError):
        return  # generators, and networks whose errors the dry run reports
    if costs[0] > max(NEGLIGIBLE, *costs[1:]):
        own, largest = (f"{cost / 1e6:,.1f}" for cost in (costs[0], max(costs[1:])))
        warnings.warn(
            f"the student {name} costs {own} MFLOPs per image and its teacher {largest}: choose a smaller student "
            "if it should be cheaper, for example mobilenetv2x0.5 or resnet8x0.5",
            TutelageWarning,
            stacklevel=2,
        )
