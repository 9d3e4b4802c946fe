"""The entropy of predictions, divided by the number of classes."""

from __future__ import annotations

from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.models.outputs import Outputs, class_logits
from tutelage.terms.precision import full_precision
from tutelage.terms.term import Term


@full_precision
def entropy(logits: Tensor) -> Tensor:
    """The entropy of the prediction divided by C, -1/C sum_c p_c log p_c, per sample: (B, C) to (B,)."""
    log_probs = class_logits(logits).log_softmax(-1)
    return -(log_probs.exp() * log_probs).where(log_probs != float("-inf"), 0.0).mean(-1)  # 0 log 0 = 0


class Entropy(Term):
    """``entropy`` of the student's prediction, per sample (B,). Minimising it makes predictions more confident."""

    reads_labels = False
    reads_teacher = False

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,) nats divided by C."""
        return entropy(student["logits"])
