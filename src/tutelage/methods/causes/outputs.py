"""Losses without the constraint that the outputs sum to 1, and a background class that takes up the rest."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.models.outputs import Outputs, class_logits
from tutelage.terms.cross_entropy import cross_entropy
from tutelage.terms.precision import full_precision
from tutelage.terms.targets import check_targets, labelled
from tutelage.terms.term import Term, View


@full_precision
def one_against_rest(logits: Tensor, targets: Tensor) -> Tensor:
    """-sum_c t_c log s(z_c) + (1 - t_c) log(1 - s(z_c)) per sample, s the logistic function and t the one-hot label.

    Args:
        logits: z, (B, C).
        targets: (B,) int64, ``-1`` for no label; or soft labels (B, C), all 0 for no label.

    Returns:
        (B,) nats; 0, without gradient, without a label.
    """
    one_hot = _one_hot(logits, targets)
    losses = F.binary_cross_entropy_with_logits(logits, one_hot, reduction="none")
    return losses.sum(1).where(labelled(targets), 0.0)


@full_precision
def squared_distance(outputs: Tensor, targets: Tensor) -> Tensor:
    """||z - t||^2 per sample, t the one-hot label; arguments and result as in ``one_against_rest``, without unit."""
    return (outputs - _one_hot(outputs, targets)).square().sum(1).where(labelled(targets), 0.0)


@full_precision
def background_cross_entropy(logits: Tensor, background: Tensor, targets: Tensor | None) -> Tensor:
    """Cross-entropy over C + 1 classes, of which the last is the background: -sum_c t_c log softmax(z, a)_c per sample.

    Args:
        logits: z, (B, C).
        background: a, (B, 1).
        targets: as in ``one_against_rest``; ``None`` if all samples are background, so that the loss is
            -log softmax(z, a)_(C+1).

    Returns:
        (B,) nats.
    """
    outputs = torch.cat([class_logits(logits), background], 1)
    if targets is None:
        return -outputs.log_softmax(1)[:, -1]
    if targets.is_floating_point():
        targets = F.pad(targets, (0, 1))
    return cross_entropy(outputs, targets)


def _one_hot(logits: Tensor, targets: Tensor) -> Tensor:
    """Targets as (B, C) in the dtype of the logits; 0 without a label."""
    classes = class_logits(logits).shape[1]
    check_targets(targets, classes)
    if targets.is_floating_point():
        return targets.to(logits)
    return (targets[:, None] == torch.arange(classes, device=logits.device)).to(logits)


class _LabelLoss(Term):
    """A term of the student's outputs and the labels alone."""

    uses_soft_labels = True
    reads_teacher = False


class OneAgainstRest(_LabelLoss):
    """``one_against_rest`` of the student's logits, per sample (B,)."""

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,) nats."""
        return one_against_rest(student["logits"], self.required(batch, "the batch, for its targets").targets)


class SquaredDistance(_LabelLoss):
    """``squared_distance`` of the student's outputs, per sample (B,)."""

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,), without unit."""
        return squared_distance(student["logits"], self.required(batch, "the batch, for its targets").targets)


class WithBackground(_LabelLoss):
    """``background_cross_entropy`` of labelled samples, with the output ``abstain`` as the background, (B,)."""

    roles = ("logits", "abstain")

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,) nats."""
        targets = self.required(batch, "the batch, for its targets").targets
        return background_cross_entropy(student["logits"], student["abstain"], targets)


class Background(_LabelLoss):
    """``background_cross_entropy`` of samples that are all background, per sample (B,)."""

    roles = ("logits", "abstain")
    reads_labels = False

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,) nats."""
        return background_cross_entropy(student["logits"], student["abstain"], None)


class UniformNoise(View):
    """As many inputs as in the batch, each value drawn uniformly from [0, 1], the range of pixels."""

    def __call__(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> Batch:
        """The batch with noise in place of its inputs."""
        return replace(batch, inputs=torch.rand_like(batch.inputs))
