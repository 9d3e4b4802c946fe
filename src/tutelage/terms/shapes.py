"""Checks against shapes that would be broadcast by mistake."""

from __future__ import annotations

from torch import Tensor

from tutelage.errors import TutelageError


def check_samples(student: Tensor, teacher: Tensor) -> None:
    """Check that the features of student and teacher, (B, ...) each, have the same number of samples.

    Raises:
        TutelageError: they have not; a single sample would be broadcast.
    """
    if student.shape[:1] != teacher.shape[:1]:
        raise TutelageError(
            f"the student's features {tuple(student.shape)} and the teacher's {tuple(teacher.shape)} are of different "
            "samples; run both networks on the same batch"
        )
