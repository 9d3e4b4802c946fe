"""Shapes that would be broadcast to each other, and must not be."""

from __future__ import annotations

from torch import Tensor

from tutelage.errors import TutelageError


def check_samples(student: Tensor, teacher: Tensor) -> None:
    """Check that features of student and teacher, (B, ...) each, are of as many samples.

    Raises:
        TutelageError: they are not; a single one would be compared with all.
    """
    if student.shape[:1] != teacher.shape[:1]:
        raise TutelageError(
            f"the student's features {tuple(student.shape)} and the teacher's {tuple(teacher.shape)} are of different "
            "samples; run both networks on the same batch"
        )
