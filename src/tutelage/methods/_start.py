"""Initialisation of a student with its teacher's weights."""

from __future__ import annotations

import copy

import torch

from tutelage.errors import TutelageError
from tutelage.models.tapped import Tapped
from tutelage.training.run import Run

CHECKED_SAMPLES = 64  # for which the outputs of both networks must agree


def start_from_teacher(run: Run, student: Tapped, teacher: Tapped) -> bool:
    """Give the student the teacher's weights and normalisation, if it is the same network.

    Returns:
        Whether it is; otherwise the student does not change.
    """
    subset = run.data.train.subset(torch.arange(min(CHECKED_SAMPLES, len(run.data.train))))
    initial = copy.deepcopy(student)
    try:
        student.module.load_state_dict(teacher.module.state_dict())
        student.copy_normalisation(teacher)
        if torch.allclose(run.predict(student, subset), run.predict(teacher, subset), rtol=1e-3, atol=1e-4):
            return True
    except RuntimeError:  # other names or shapes
        pass
    student.module.load_state_dict(initial.module.state_dict())
    student.copy_normalisation(initial)
    return False


def another_network(student: Tapped, teacher: Tapped, otherwise: str, setting: str = "start") -> TutelageError:
    """The error of the setting ``start=teacher`` where ``start_from_teacher`` is False; ``otherwise`` is a remedy."""
    return TutelageError(
        f"{setting}=teacher copies the teacher's weights, but the student, {type(student.module).__name__}, is another "
        f"network than the teacher, {type(teacher.module).__name__}, or takes images of another size; use the same, "
        f"or {setting}={otherwise}"
    )
