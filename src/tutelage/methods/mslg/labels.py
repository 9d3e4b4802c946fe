"""Soft labels that are learnt: Algan, Ulusoy 2020, arXiv 2007.05836."""

from __future__ import annotations

import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.data.data import Split
from tutelage.data.per_sample import PerSample
from tutelage.models.outputs import Outputs, class_logits
from tutelage.terms.precision import full_precision
from tutelage.terms.soft_targets import kl_divergence
from tutelage.terms.term import Term


@full_precision
def reverse_kl(logits: Tensor, label_log_probs: Tensor) -> Tensor:
    """1/C sum_c p_c (log p_c - log y_c) per sample: KL(p || y) / C, with the prediction p = softmax(z) first.

    The division by C is that of the authors' mean over batch and classes. With it, gradients are C times smaller.

    Args:
        logits: z, (B, C).
        label_log_probs: log y, (B, C), finite; gradients reach it.

    Returns:
        (B,) nats divided by C.
    """
    return kl_divergence(class_logits(logits).log_softmax(-1), label_log_probs) / logits.shape[-1]


@full_precision
def entropy(logits: Tensor) -> Tensor:
    """-1/C sum_c p_c log p_c per sample: H(softmax(z)) / C, (B, C) to (B,) nats divided by C as in ``reverse_kl``.

    ``reverse_kl`` + ``entropy`` is the reverse cross-entropy -1/C sum_c p_c log y_c.
    """
    log_probs = class_logits(logits).log_softmax(-1)
    return -(log_probs.exp() * log_probs).where(log_probs != float("-inf"), 0.0).mean(-1)  # 0 log 0 = 0


class LearnedLabels(Term):
    """``reverse_kl`` of the student's logits and a soft label that every sample has for itself, per sample (B,).

    The label is the softmax of a row of scores. The batch's targets are not read.

    Args:
        split: the part that is trained on.
        scores: (N, C), with which the labels begin. They are a buffer, kept with the learner that has the term.
    """

    reads_labels = False

    def __init__(self, split: Split, scores: Tensor) -> None:
        super().__init__()
        self.store = PerSample(split, scores)

    @property
    def teacher_roles(self) -> tuple[str, ...]:
        """It reads nothing of a teacher."""
        return ()

    def scores(self, index: Tensor) -> Tensor:
        """A copy of these samples' scores: (B,) ``Batch.index`` to (B, C)."""
        return self.store.values[self.store.rows(index)]

    @torch.no_grad()
    def move(self, index: Tensor, change: Tensor) -> None:
        """Add (B, C) to the scores of these samples."""
        self.store.values[self.store.rows(index)] += change

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,) nats divided by C."""
        if batch is None:
            raise ValueError("LearnedLabels needs the batch, for its index")
        return reverse_kl(student["logits"], self.scores(batch.index).log_softmax(-1))


class Entropy(Term):
    """``entropy`` of the student's prediction, per sample (B,): a term of positive weight asks for certainty."""

    reads_labels = False

    @property
    def teacher_roles(self) -> tuple[str, ...]:
        """It reads nothing of a teacher."""
        return ()

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,) nats divided by C."""
        return entropy(student["logits"])
