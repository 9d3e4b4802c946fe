"""Knowledge adjustment, which corrects a teacher's wrong predictions: Wen, Lai, Qian 2019, arXiv 1911.07471."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs, class_logits
from tutelage.terms.precision import full_precision
from tutelage.terms.soft_targets import kl_divergence
from tutelage.terms.targets import checked_labels
from tutelage.terms.term import Term

Adjustment = Callable[[Tensor, Tensor], Tensor]
"""(B, m) probabilities and labels to (B, m) probabilities."""


@full_precision
def probability_shift(probs: Tensor, labels: Tensor) -> Tensor:
    """Probability shift (PS): if the teacher's prediction is wrong, swap q[argmax q] and q[y].

    A label that ties with the largest probability is not wrong.

    Args:
        probs: q, (B, m).
        labels: y, (B,) int64, ``-1`` for no label, which leaves q unchanged; or soft labels (B, m), whose largest class
            counts.

    Returns:
        (B, m) probabilities.
    """
    errors, labels = _errors(probs, labels)
    best, top = probs.max(1, keepdim=True)
    shifted = probs.scatter(1, top, probs.gather(1, labels)).scatter(1, labels, best)
    return shifted.where(errors, probs)


@full_precision
def label_smooth_replacement(probs: Tensor, labels: Tensor, smoothing: float = 0.1) -> Tensor:
    """Label smoothing replacement (LSR): if the teacher's prediction is wrong, replace it by the smoothed label.

    That is 1 - smoothing for the label and smoothing / (m - 1) for each other class.

    Args:
        probs, labels: as in ``probability_shift``.
        smoothing: 0.1 is the value of public code [KD_Lib].

    Returns:
        (B, m) probabilities.
    """
    errors, labels = _errors(probs, labels)
    smoothed = torch.full_like(probs, smoothing / (probs.shape[1] - 1))
    return smoothed.scatter(1, labels, 1 - smoothing).where(errors, probs)


class AdjustedSoftTargets(Term):
    """Soft targets of an adjusted teacher, T^2 KL(A(softmax(v / T), y) || softmax(z / T)), per sample (B,).

    z are the student's logits of the m classes, v the teacher's. Several teachers are averaged as softened
    probabilities before the adjustment.

    Args:
        adjustment: A, for example ``probability_shift``.
        temperature: T > 0.
    """

    def __init__(self, adjustment: Adjustment = probability_shift, temperature: float = 4.0) -> None:
        super().__init__()
        if not 0 < temperature < float("inf"):
            raise TutelageError(f"the temperature must be a finite number above 0, got {temperature}")
        self.adjustment, self.temperature = adjustment, temperature

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,) nats times T^2."""
        target = adjusted(teacher, batch, self.adjustment, self.temperature).log()
        return self.temperature**2 * kl_divergence(target, student.log_probs(self.temperature))


def adjusted(teacher: Outputs | None, batch: Batch | None, adjustment: Adjustment, temperature: float = 1.0) -> Tensor:
    """A(softmax(v / T), y), (B, m), without gradient."""
    if teacher is None or batch is None:
        raise TutelageError("an adjusted teacher needs a teacher's outputs and the batch, for its labels; pass both")
    return adjustment(teacher.detach().log_probs(temperature).exp(), batch.targets)


def _errors(probs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Which predictions contradict a known label, (B, 1) bool, and the labels as indices, (B, 1)."""
    labels = checked_labels(labels, class_logits(probs).shape[1])
    is_labelled, indices = (labels >= 0)[:, None], labels.clamp(min=0)[:, None]
    return is_labelled & (probs.gather(1, indices) < probs.amax(1, keepdim=True)), indices
