"""The label loss: cross-entropy with hard or soft labels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from tutelage.data.batch import UNLABELLED, Batch
from tutelage.models.outputs import Outputs, classes_last
from tutelage.terms.precision import full_precision
from tutelage.terms.targets import IGNORED, check_targets, flat_targets, labelled
from tutelage.terms.term import Term


@full_precision
def cross_entropy(logits: Tensor, targets: Tensor, *, ignore_index: int = IGNORED, axis: int | None = None) -> Tensor:
    """-sum_c y_c log softmax(z)_c per sample; for tokens and maps, the mean over the positions that have a label.

    Args:
        logits: (B, C), (B, T, C) for tokens, or (B, C, H, W) for maps.
        targets: int64 class numbers, (B,), (B, T) or (B, H, W), or soft labels of the shape of the logits. ``-1``,
            ``ignore_index`` and soft labels that are all 0 mean "no label": value and gradient are 0.
        ignore_index: as in torch; -1 means "no label" as well.
        axis: the class axis, if it is not the one above: 1 for (B, C, T), as in torch's function.

    Returns:
        (B,) nats; 0 for a sample without any label.

    Raises:
        TutelageError: other shapes, or, on the CPU, class numbers that do not exist.
    """
    if not targets.is_floating_point():
        targets = targets.masked_fill(targets == ignore_index, UNLABELLED)
    rows = classes_last(logits, axis).flatten(0, -2)
    if logits.ndim == 2:
        return _cross_entropy(rows, targets)
    targets = flat_targets(targets, logits, axis)
    losses, counts = (value.view(len(logits), -1) for value in (_cross_entropy(rows, targets), labelled(targets)))
    return losses.sum(1) / counts.sum(1).clamp(min=1)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """(N, C) logits and (N,) or (N, C) targets to (N,)."""
    check_targets(targets, logits.shape[1])
    if targets.is_floating_point():
        log_probs = logits.log_softmax(-1)
        terms = targets.to(logits) * log_probs
        return -terms.where((targets != 0) | (log_probs != float("-inf")), 0.0).sum(-1)  # 0 log 0 = 0
    return F.cross_entropy(logits, targets, reduction="none", ignore_index=UNLABELLED)


class CrossEntropy(Term):
    """The label loss: ``cross_entropy`` of the student's logits and the batch's targets, per sample (B,).

    With plain tensors, ``CrossEntropy()(logits, labels)`` is the mean over all samples, tokens or pixels with a label,
    as in ``torch.nn.CrossEntropyLoss``.

    Args:
        ignore_index, axis: as in ``cross_entropy``.
    """

    uses_soft_labels = True
    reads_teacher = False

    def __init__(self, ignore_index: int = IGNORED, axis: int | None = None) -> None:
        super().__init__()
        self.ignore_index, self.axis = ignore_index, axis

    def mask(self, batch: Batch | None) -> Tensor | None:
        """The samples with a label."""
        return None if batch is None else labelled(batch.targets, self.ignore_index)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,) nats."""
        targets = self.required(batch, "the batch, for its targets").targets
        return cross_entropy(student["logits"], targets, ignore_index=self.ignore_index, axis=self.axis)
