"""Refined logit distillation (RLD): Sun, Chen, Lyu, Chen, Chen, Wang 2025, arXiv 2408.07703."""

from __future__ import annotations

import torch
from torch import Tensor

from tutelage.models.outputs import Outputs, class_logits
from tutelage.terms.decoupled import DecoupledSoftTargets, split_label
from tutelage.terms.precision import full_precision
from tutelage.terms.shapes import check_same_outputs
from tutelage.terms.soft_targets import kl_divergence
from tutelage.terms.targets import checked_labels

_MASKED = -1e9  # finite, so that a sample of which all classes are masked has two equal distributions and no NaN


@full_precision
def refined_soft_targets(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    """The loss of RLD, T^2 (alpha SCD + beta MCD), per sample.

        SCD = KL((max p^T, 1 - max p^T) || (p_y^S, 1 - p_y^S))
        MCD = KL(p^T without M || p^S without M), each divided by its sum,  M = {k: p_k^T >= p_y^T}

    p is a softmax at temperature T. Where the teacher predicts the label this is ``decoupled_soft_targets``. Where it
    does not, the student learns the teacher's confidence for the label, and from the other classes only those that the
    teacher ranks below the label.

    Args:
        student_logits, teacher_logits: (B, C), of two classes at least. No gradient reaches the teacher's.
        labels: y, (B,) int64, ``-1`` for no label; or soft labels (B, C), whose largest class counts.
        alpha, beta: the weights of the two parts.
        temperature: T > 0.

    Returns:
        (B,) nats times T^2; 0 for samples without a label. MCD is 0 where the teacher ranks no class below the label.
    """
    teacher, student = (Outputs(class_logits(logits)) for logits in (teacher_logits.detach(), student_logits))
    return _refined(student, teacher, labels, alpha, beta, temperature)


def _refined(
    student: Outputs, teacher: Outputs, labels: Tensor, alpha: float, beta: float, temperature: float
) -> Tensor:
    log_q, log_p = (class_logits(outputs.log_probs(temperature)) for outputs in (teacher, student))
    check_same_outputs(log_p, log_q)
    labels = checked_labels(labels, log_p.shape[1])
    targets = labels.clamp(min=0)
    confidence = kl_divergence(_class_and_rest(log_q, log_q.argmax(1)), _class_and_rest(log_p, targets))
    masked = log_q >= log_q.gather(1, targets[:, None])
    log_q, log_p = (values.masked_fill(masked, _MASKED).log_softmax(1) for values in (log_q, log_p))
    value = temperature**2 * (alpha * confidence + beta * kl_divergence(log_q, log_p))
    return value.where(labels >= 0, 0.0)


class RefinedSoftTargets(DecoupledSoftTargets):
    """``refined_soft_targets`` of the student's and the teacher's logits, per sample (B,).

    Several teachers are averaged as softened probabilities.

    Args:
        alpha, beta, temperature: as in ``refined_soft_targets``.
    """

    def _loss(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        return _refined(student, teacher, labels, self.alpha, self.beta, self.temperature)


def _class_and_rest(log_probs: Tensor, classes: Tensor) -> Tensor:
    """The log-probabilities of one class of each sample and of all others together, (B, 2)."""
    one, others = split_label(log_probs, classes)
    return torch.cat([one, others.logsumexp(1, keepdim=True)], 1)
