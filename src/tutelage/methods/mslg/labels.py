"""Learned soft labels: Algan, Ulusoy 2020, arXiv 2007.05836."""

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
    """KL(p || y) / C per sample, 1/C sum_c p_c (log p_c - log y_c), with the prediction p = softmax(z).

    The authors' mean over batch and classes causes the division by C, which makes gradients C times smaller. The sum
    with ``terms.entropy.entropy`` is the reverse cross-entropy -1/C sum_c p_c log y_c.

    Args:
        logits: z, (B, C).
        label_log_probs: log y, (B, C), finite; gradients reach it.

    Returns:
        (B,) nats divided by C.
    """
    return kl_divergence(class_logits(logits).log_softmax(-1), label_log_probs) / logits.shape[-1]


class LearnedLabels(Term):
    """``reverse_kl`` of the student's logits and a learned soft label for each sample, per sample (B,).

    The label is the softmax of a row of scores. The batch's targets are not read.

    Args:
        split: the training split.
        scores: the initial scores, (N, C). They are a buffer, saved with the learner of this term.
    """

    reads_labels = False
    reads_index = True
    reads_teacher = False

    def __init__(self, split: Split, scores: Tensor) -> None:
        super().__init__()
        self.store = PerSample(split, scores)

    def scores(self, index: Tensor) -> Tensor:
        """A copy of the scores of samples: (B,) ``Batch.index`` to (B, C)."""
        return self.store.values[self.store.rows(index)]

    @torch.no_grad()
    def add(self, index: Tensor, change: Tensor) -> None:
        """Add ``change`` (B, C) to the scores of samples."""
        self.store.values[self.store.rows(index)] += change

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,) nats divided by C."""
        index = self.required(batch, "the batch, for its index").index
        return reverse_kl(student["logits"], self.scores(index).log_softmax(-1))
