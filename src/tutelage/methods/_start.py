"""A student that starts from its teacher's weights."""

from __future__ import annotations

import copy

import torch

from tutelage.models.tapped import Tapped
from tutelage.training.run import Run

SHOWN = 64  # samples for which both networks have to give the same


def start_from_teacher(run: Run, student: Tapped, teacher: Tapped) -> bool:
    """Give the student the teacher's weights, if it is the same network with the same normalisation.

    Returns:
        Whether it is; otherwise the student keeps the weights that it has.
    """
    part = run.data.train.subset(torch.arange(min(SHOWN, len(run.data.train))))
    before = copy.deepcopy(student.module.state_dict())
    try:
        student.module.load_state_dict(teacher.module.state_dict())
        if torch.allclose(run.predict(student, part), run.predict(teacher, part), rtol=1e-3, atol=1e-4):
            return True
    except RuntimeError:  # other names or shapes
        pass
    student.module.load_state_dict(before)
    return False
