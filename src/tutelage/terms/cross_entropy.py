"""Cross-entropy with the labels given."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from tutelage.data.batch import UNLABELLED, Batch
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs, class_logits
from tutelage.terms.precision import full_precision
from tutelage.terms.targets import check_targets
from tutelage.terms.term import Term


@full_precision
def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-sum_c y_c log softmax(z)_c per sample; with L places a sample, the mean over those that have a label.

    Args:
        logits: (B, C), or (B, L, C).
        targets: (B,) int64 class numbers, ``-1`` for no label (its value and gradient are 0); or (B, C) soft labels.
            Of logits (B, L, C), (B, L) int64.

    Returns:
        (B,) nats.

    Raises:
        TutelageError: for other shapes, and on the processor for class numbers that do not exist.
    """
    if class_logits(logits, places=True).ndim == 3:
        return _over_places(logits, targets)
    check_targets(targets, logits.shape[1])
    if targets.is_floating_point():
        log_probs = logits.log_softmax(-1)
        terms = targets.to(logits) * log_probs
        return -terms.where((targets != 0) | (log_probs != float("-inf")), 0.0).sum(-1)  # 0 log 0 = 0
    return F.cross_entropy(logits, targets, reduction="none", ignore_index=UNLABELLED)


def _over_places(logits: Tensor, targets: Tensor) -> Tensor:
    """(B, L, C) and (B, L) to (B,): 0 for a sample without a label."""
    if targets.shape != logits.shape[:2]:
        raise TutelageError(
            f"the labels of logits {tuple(logits.shape)} must be {tuple(logits.shape[:2])} int64 class numbers, got "
            f"shape {tuple(targets.shape)}; give one for each place, {UNLABELLED} where it is unknown"
        )
    check_targets(targets.flatten(), logits.shape[2])
    each = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none", ignore_index=UNLABELLED)
    return each.sum(1) / (targets != UNLABELLED).sum(1).clamp(min=1)


class CrossEntropy(Term):
    """The label loss: ``cross_entropy`` of the student's logits and the batch's targets, per sample (B,)."""

    @property
    def teacher_roles(self) -> tuple[str, ...]:
        """It reads nothing of a teacher."""
        return ()

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,) nats."""
        if batch is None:
            raise ValueError("CrossEntropy needs the batch, for its targets")
        return cross_entropy(student["logits"], batch.targets)
