"""The virtual teacher of teacher-free distillation (Tf-KD): Yuan, Tay, Li, Wang, Feng 2020, arXiv 1909.11723."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs, class_logits
from tutelage.terms.precision import full_precision
from tutelage.terms.soft_targets import kl_divergence
from tutelage.terms.targets import checked_labels
from tutelage.terms.term import Term


@full_precision
def virtual_soft_targets(logits: Tensor, labels: Tensor, correct: float = 0.99, temperature: float = 20.0) -> Tensor:
    """KL(softmax(log(u) / T) || softmax(z)) per sample, of a teacher that gives the label the probability ``correct``.

    u_y = correct, and u_k = (1 - correct) / (C - 1) for each other class k. The authors' code has softmax(u / T), which
    is nearly uniform for T = 20, and divides the sum over classes by C.

    Args:
        logits: z, (B, C), of two classes at least.
        labels: y, (B,) int64, ``-1`` for no label; or soft labels (B, C), whose largest class counts.
        correct: in (0, 1).
        temperature: T > 0 of the teacher alone.

    Returns:
        (B,) nats; 0 for samples without a label.
    """
    log_probs = class_logits(logits).log_softmax(1)
    classes = log_probs.shape[1]
    labels = checked_labels(labels, classes)
    gap = (math.log(correct) - math.log((1 - correct) / (classes - 1))) / temperature
    target = torch.zeros_like(log_probs).scatter(1, labels.clamp(min=0)[:, None], gap).log_softmax(1)
    return kl_divergence(target, log_probs).where(labels >= 0, 0.0)


class VirtualTeacher(Term):
    """``virtual_soft_targets`` of the student's logits, per sample (B,).

    Args:
        correct, temperature: as in ``virtual_soft_targets``.
    """

    reads_teacher = False

    def __init__(self, correct: float = 0.99, temperature: float = 20.0) -> None:
        super().__init__()
        if not 0 < correct < 1 or not 0 < temperature < float("inf"):
            raise TutelageError(
                "the probability of the label must be in (0, 1) and the temperature a finite number above 0, got "
                f"{correct} and {temperature}"
            )
        self.correct, self.temperature = correct, temperature

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,) nats."""
        labels = self.required(batch, "the batch, for its labels").targets
        return virtual_soft_targets(student["logits"], labels, self.correct, self.temperature)
