"""Decoupled knowledge distillation (DKD): Zhao, Cui, Song, Qiu, Liang 2022, arXiv 2203.08679."""

from __future__ import annotations

import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs, class_logits
from tutelage.terms.precision import full_precision
from tutelage.terms.shapes import check_same_outputs
from tutelage.terms.soft_targets import kl_divergence
from tutelage.terms.targets import checked_labels
from tutelage.terms.term import Term


@full_precision
def decoupled_soft_targets(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    """The loss of DKD, T^2 (alpha TCKD + beta NCKD), per sample.

        TCKD = KL((p_y^T, 1 - p_y^T) || (p_y^S, 1 - p_y^S))
        NCKD = KL(p^T without y || p^S without y), each divided by 1 - p_y

    p is a softmax at temperature T. Hinton's divergence is TCKD + (1 - p_y^T) NCKD, which suppresses NCKD where the
    teacher is certain.

    Args:
        student_logits, teacher_logits: (B, C), of two classes at least. No gradient reaches the teacher's.
        labels: y, (B,) int64, ``-1`` for no label; or soft labels (B, C), whose largest class counts.
        alpha, beta: the weights of the two parts.
        temperature: T > 0.

    Returns:
        (B,) nats times T^2; 0 for samples without a label, which have no target class.
    """
    teacher, student = (Outputs(class_logits(logits)) for logits in (teacher_logits.detach(), student_logits))
    return _decoupled(student, teacher, labels, alpha, beta, temperature)


def _decoupled(
    student: Outputs, teacher: Outputs, labels: Tensor, alpha: float, beta: float, temperature: float
) -> Tensor:
    log_q, log_p = (class_logits(outputs.log_probs(temperature)) for outputs in (teacher, student))
    check_same_outputs(log_p, log_q)
    labels = checked_labels(labels, log_p.shape[1])
    (target_q, others_q), (target_p, others_p) = (split_label(values, labels.clamp(min=0)) for values in (log_q, log_p))
    rest_q, rest_p = others_q.logsumexp(1, keepdim=True), others_p.logsumexp(1, keepdim=True)
    target_class = kl_divergence(torch.cat([target_q, rest_q], 1), torch.cat([target_p, rest_p], 1))
    other_classes = kl_divergence(others_q - rest_q, others_p - rest_p)
    value = temperature**2 * (alpha * target_class + beta * other_classes)
    return value.where(labels >= 0, 0.0)


class DecoupledSoftTargets(Term):
    """``decoupled_soft_targets`` of the student's and the teacher's logits, per sample (B,).

    Several teachers are averaged as softened probabilities.

    Args:
        alpha, beta, temperature: as in ``decoupled_soft_targets``.
    """

    def __init__(self, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0) -> None:
        super().__init__()
        if not 0 < temperature < float("inf"):
            raise TutelageError(f"the temperature must be a finite number above 0, got {temperature}")
        self.alpha, self.beta, self.temperature = alpha, beta, temperature

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,) nats times T^2."""
        labels = self.required(batch, "the batch, for its labels").targets
        return self._loss(student, self.required(teacher).detach(), labels)

    def _loss(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        return _decoupled(student, teacher, labels, self.alpha, self.beta, self.temperature)


def split_label(log_probs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The log-probabilities (B, 1) of the labels and (B, C - 1) of the other classes."""
    columns = torch.arange(log_probs.shape[1] - 1, device=labels.device)
    others = columns + (columns >= labels[:, None]).long()  # skips the label, without a copy of unknown size
    return log_probs.gather(1, labels[:, None]), log_probs.gather(1, others)
