"""Checks against shapes that would be broadcast by mistake."""

from __future__ import annotations

import torch.nn.functional as F
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


def check_same_outputs(student: Tensor, teacher: Tensor) -> None:
    """Check that two sets of logits or probabilities have one shape.

    Raises:
        TutelageError: they have not.
    """
    if student.shape != teacher.shape:
        raise TutelageError(
            f"outputs of shapes {tuple(student.shape)} and {tuple(teacher.shape)} cannot be compared; "
            "student and teacher need the same samples and classes"
        )


def pooled_to_smaller(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps (B, C, H, W) at the smaller height and the smaller width of both, by average pooling."""
    size = min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3])
    a, b = (F.adaptive_avg_pool2d(maps, size) if maps.shape[2:] != size else maps for maps in (a, b))
    return a, b
