"""The loss of a classifier that also discriminates real from generated images: Salimans et al. 2016, 1606.03498."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.models.outputs import Outputs
from tutelage.terms.precision import full_precision
from tutelage.terms.term import Term


@full_precision
def discrimination(logits: Tensor, *, genuine: bool) -> Tensor:
    """-log P(real) of a genuine image, or -log (1 - P(real)) of a generated one, per sample.

        P(real) = Z / (Z + 1),   Z = sum_k exp(l_k)

    This is the cross-entropy of K + 1 classes of which the last, "generated", has the constant logit 0. Its gradient by
    l_k is -p_k (1 - P(real)) for a genuine image and p_k P(real) for a generated one, with p = softmax(l): it pulls
    genuine images to the classes, most to the likeliest, and pushes generated ones away from them.

    Args:
        logits: l, (B, K).
        genuine: whether the images are genuine.

    Returns:
        (B,), in nats.
    """
    log_z = logits.logsumexp(1)
    return F.softplus(-log_z if genuine else log_z)


class Discrimination(Term):
    """``discrimination`` of the student's logits, per sample (B,).

    Args:
        genuine: whether the images of the batch are genuine.
    """

    reads_labels = False
    teacher_roles = ()

    def __init__(self, *, genuine: bool) -> None:
        super().__init__()
        self.genuine = genuine

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,), in nats."""
        return discrimination(student["logits"], genuine=self.genuine)
