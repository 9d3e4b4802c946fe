"""The regulariser of the mean prediction, and mix-up of images and labels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.data.mixing import blended
from tutelage.models.outputs import Outputs, class_logits
from tutelage.terms.precision import full_precision
from tutelage.terms.term import Term, View


@full_precision
def mean_prediction_loss(logits: Tensor) -> Tensor:
    """L_p = -1/C sum_c log(mean over the batch of p_c), p = softmax(z).

    Up to a constant the divergence of the mean prediction from uniform classes. The minimum, log C, is where the mean
    prediction is uniform.

    Args:
        logits: z, (B, C).

    Returns:
        () nats.
    """
    log_probs = class_logits(logits).log_softmax(-1)
    return -(log_probs.logsumexp(0) - math.log(len(logits))).mean()


class MeanPrediction(Term):
    """``mean_prediction_loss`` of the student's logits, one value for the batch, ()."""

    reads_labels = False
    reads_teacher = False

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """() nats."""
        return mean_prediction_loss(student["logits"])


class MixUp(View):
    """Mix-up: l x + (1 - l) x' with the label l y + (1 - l) y', where x' is a random other sample of the batch.

    l is drawn from Beta(1, 1), once for a batch. Cross-entropy with the mixed label is l CE(y) + (1 - l) CE(y').
    Zhang, Cisse, Dauphin, Lopez-Paz 2018, arXiv 1710.09412.

    Args:
        roles: the student's outputs for the unmixed batch that something else reads, such as an update rule.
    """

    def __init__(self, roles: Sequence[str] = ()) -> None:
        self.roles = tuple(roles)

    def __call__(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> Batch:
        """The mixed batch; the batch's targets are soft labels (B, C)."""
        share = float(torch.rand(()))
        partners = torch.randperm(len(batch), device=batch.index.device)
        return blended(batch, share, partners)
