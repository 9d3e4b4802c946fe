"""Softened outputs: Hinton, Vinyals, Dean 2015, arXiv 1503.02531."""

from __future__ import annotations

from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs
from tutelage.terms.cross_entropy import CrossEntropy
from tutelage.terms.precision import full_precision
from tutelage.terms.term import Term, Weighted


@full_precision
def divergence(target_log_probs: Tensor, log_probs: Tensor) -> Tensor:
    """KL(target || other) = sum_c q_c (log q_c - log p_c), from logarithms: (..., C) twice to (...) nats.

    Raises:
        TutelageError: for two different shapes.
    """
    if target_log_probs.shape != log_probs.shape:
        raise TutelageError(
            f"outputs of shapes {tuple(log_probs.shape)} and {tuple(target_log_probs.shape)} cannot be compared; "
            "student and teacher need the same samples and classes"
        )
    terms = target_log_probs.exp() * (target_log_probs - log_probs)
    return terms.where(target_log_probs != float("-inf"), 0.0).sum(-1)  # 0 log 0 = 0, and a NaN stays


@full_precision
def soft_targets(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0) -> Tensor:
    """T^2 KL(softmax(v / T) || softmax(z / T)) per sample.

    z are the student's logits, v the teacher's; the sum runs over classes. The factor T^2 keeps the size of the
    gradient, T (p - q), comparable with that of the label loss when T changes. Zero means matched: this is the
    divergence, not the cross-entropy with soft labels, whose gradient is the same.

    Args:
        student_logits, teacher_logits: (B, C), or (B, L, C), of which the mean over all L places is taken; no gradient
            reaches the teacher's.
        temperature: T > 0.

    Returns:
        (B,) nats times T^2.
    """
    return _softened(Outputs(student_logits), Outputs(teacher_logits), temperature)


class SoftTargets(Term):
    """``soft_targets`` of the student's and the teacher's logits, per sample (B,).

    Several teachers are averaged as softened *probabilities*, as the paper's ensembles are.
    """

    reads_labels = False

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        if not 0 < temperature < float("inf"):
            raise ValueError(f"the temperature must be a finite number above 0, got {temperature}")
        self.temperature = temperature

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,) nats times T^2."""
        if teacher is None:
            raise ValueError("SoftTargets needs a teacher's outputs")
        return _softened(student, teacher, self.temperature)


def labels_and_soft_targets(alpha: float, temperature: float = 4.0) -> dict[str, Weighted]:
    """Hinton's loss as terms: (1 - alpha) CE(z, y) + alpha T^2 KL; with alpha = 0 the label loss alone."""
    terms = {"ce": (1 - alpha) * CrossEntropy()}
    return terms | {"kd": alpha * SoftTargets(temperature)} if alpha else terms


def _softened(student: Outputs, teacher: Outputs, temperature: float) -> Tensor:
    each = divergence(teacher.detach().log_probs(temperature), student.log_probs(temperature))
    return temperature**2 * (each if each.ndim == 1 else each.mean(1))
