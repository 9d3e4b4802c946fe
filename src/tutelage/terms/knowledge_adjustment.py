"""A teacher that is never wrong: knowledge adjustment (Wen, Lai, Qian 2019, arXiv 1911.07471)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.models.outputs import Outputs, class_logits
from tutelage.terms.precision import full_precision
from tutelage.terms.soft_targets import kl_divergence
from tutelage.terms.targets import checked_labels
from tutelage.terms.term import Term

Adjustment = Callable[[Tensor, Tensor], Tensor]
"""(B, m) probabilities and their labels to (B, m) probabilities."""


@full_precision
def probability_shift(probs: Tensor, labels: Tensor) -> Tensor:
    """PS: where the teacher is wrong, q[argmax q] and q[y] change places.

    The values stay the same ones, with the label's class on top. A label that ties with the largest is not wrong.

    Args:
        probs: (B, m) q.
        labels: (B,) int64 y, ``-1`` for no label, which leaves q as it is; or (B, m) soft ones, whose largest counts.
    """
    wrong, labels = _wrong(probs, labels)
    best, top = probs.max(1, keepdim=True)
    shifted = probs.scatter(1, top, probs.gather(1, labels)).scatter(1, labels, best)
    return shifted.where(wrong, probs)


@full_precision
def label_smooth_replacement(probs: Tensor, labels: Tensor, smoothing: float = 0.1) -> Tensor:
    """LSR: where the teacher is wrong, 1 - smoothing for the label and smoothing / (m - 1) for each other class.

    Arguments as those of ``probability_shift``; 0.1 is what public code has [KD_Lib].
    """
    wrong, labels = _wrong(probs, labels)
    others = torch.full_like(probs, smoothing / (probs.shape[1] - 1))
    return others.scatter(1, labels, 1 - smoothing).where(wrong, probs)


class AdjustedSoftTargets(Term):
    """T^2 KL(A(softmax(v / T), y) || softmax(z / T)) per sample (B,): soft targets of an adjusted teacher.

    z are the student's logits of the m classes, renormalised among themselves if it has an output more; v the
    teacher's. Several teachers are averaged as softened probabilities and adjusted then.

    Args:
        adjustment: A.
        temperature: T > 0.
    """

    def __init__(self, adjustment: Adjustment = probability_shift, temperature: float = 4.0) -> None:
        super().__init__()
        if not 0 < temperature < float("inf"):
            raise ValueError(f"the temperature must be a finite number above 0, got {temperature}")
        self.adjustment, self.temperature = adjustment, temperature

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,) nats times T^2."""
        target = adjusted(teacher, batch, self.adjustment, self.temperature).log()
        return self.temperature**2 * kl_divergence(target, student.log_probs(self.temperature))


def adjusted(teacher: Outputs | None, batch: Batch | None, adjustment: Adjustment, temperature: float = 1.0) -> Tensor:
    """A(softmax(v / T), y), (B, m), without a gradient."""
    if teacher is None or batch is None:
        raise ValueError("an adjusted teacher needs a teacher's outputs and the batch, for its labels")
    return adjustment(teacher.detach().log_probs(temperature).exp(), batch.targets)


def _wrong(probs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Where the label is known and another class is larger, (B, 1), and places to gather from, (B, 1)."""
    labels = checked_labels(labels, class_logits(probs).shape[1])
    known, places = (labels >= 0)[:, None], labels.clamp(min=0)[:, None]
    return known & (probs.gather(1, places) < probs.amax(1, keepdim=True)), places
