"""Logit standardization: Sun, Ren, Li, Wang, Cao 2024, arXiv 2403.01427."""

from __future__ import annotations

from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs, class_logits
from tutelage.terms.precision import full_precision
from tutelage.terms.soft_targets import soft_targets
from tutelage.terms.term import Term


@full_precision
def standardized(logits: Tensor) -> Tensor:
    """The Z-scores of each sample's logits, (z - mean(z)) / std(z), over the classes.

    The standard deviation is that of a sample (divided by C - 1), as in the authors' code.

    Args:
        logits: (B, C), of two classes at least.

    Returns:
        (B, C); 0 where all logits of a sample are equal.
    """
    centred = class_logits(logits) - logits.mean(1, keepdim=True)
    return centred / (centred.square().sum(1, keepdim=True) / (logits.shape[1] - 1) + 1e-14).sqrt()


@full_precision
def standardized_soft_targets(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 2.0) -> Tensor:
    """T^2 KL(softmax(Z(v) / T) || softmax(Z(z) / T)): ``soft_targets`` of standardized logits, per sample.

    The student does not have to match the size of the teacher's logits, only their relations: the value does not change
    if a sample's logits are moved or multiplied by a positive number.

    Args:
        student_logits, teacher_logits: (B, C). No gradient reaches the teacher's.
        temperature: T > 0.

    Returns:
        (B,) nats times T^2.
    """
    return soft_targets(standardized(student_logits), standardized(teacher_logits.detach()), temperature)


class StandardizedSoftTargets(Term):
    """``standardized_soft_targets`` of the student's and the teacher's logits, per sample (B,).

    Of several teachers, the logarithm of the mean probability is standardized.

    Args:
        temperature: T > 0.
    """

    reads_labels = False

    def __init__(self, temperature: float = 2.0) -> None:
        super().__init__()
        if not 0 < temperature < float("inf"):
            raise TutelageError(f"the temperature must be a finite number above 0, got {temperature}")
        self.temperature = temperature

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,) nats times T^2."""
        return standardized_soft_targets(student["logits"], self.required(teacher)["logits"], self.temperature)
