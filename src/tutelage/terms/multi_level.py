"""Multi-level logit distillation: Jin, Wang, Lin 2023, Multi-Level Logit Distillation, CVPR."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs, class_logits
from tutelage.terms.precision import full_precision
from tutelage.terms.shapes import check_same_outputs
from tutelage.terms.term import Term


@full_precision
def sample_correlations(student_probs: Tensor, teacher_probs: Tensor) -> Tensor:
    """The batch level of MLKD: ||P_S P_S^T - P_T P_T^T||_F^2 / B.

    Args:
        student_probs, teacher_probs: P, (B, C) probabilities. No gradient reaches the teacher's.

    Returns:
        ().
    """
    check_same_outputs(student_probs, teacher_probs)
    teacher_probs = teacher_probs.detach()
    difference = student_probs @ student_probs.T - teacher_probs @ teacher_probs.T
    return difference.square().sum() / len(student_probs)


@full_precision
def class_correlations(student_probs: Tensor, teacher_probs: Tensor) -> Tensor:
    """The class level of MLKD: ||P_S^T P_S - P_T^T P_T||_F^2 / C; arguments and value are as above."""
    check_same_outputs(student_probs, teacher_probs)
    return sample_correlations(student_probs.T, teacher_probs.T)


class MultiLevelCorrelations(Term):
    """``sample_correlations`` plus ``class_correlations``, each the mean over temperatures: one value ().

    Several teachers are averaged as softened probabilities.

    Args:
        temperatures: each above 0.
    """

    reads_labels = False

    def __init__(self, temperatures: Sequence[float] = (2.0, 3.0, 4.0, 5.0, 6.0)) -> None:
        super().__init__()
        if not temperatures or not all(0 < temperature < float("inf") for temperature in temperatures):
            raise TutelageError(f"temperatures must be finite numbers above 0, got {list(temperatures)}")
        self.temperatures = tuple(temperatures)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(), without unit."""
        teacher = self.required(teacher).detach()
        values = []
        for temperature in self.temperatures:
            p, q = (class_logits(outputs.log_probs(temperature)).exp() for outputs in (student, teacher))
            values.append(sample_correlations(p, q) + class_correlations(p, q))
        return torch.stack(values).mean()
