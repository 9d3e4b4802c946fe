"""Probabilistic knowledge transfer (PKT): Passalis, Tefas 2018, arXiv 1803.10837."""

from __future__ import annotations

from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.models.outputs import Outputs
from tutelage.terms.precision import full_precision, scale_of
from tutelage.terms.shapes import check_samples
from tutelage.terms.term import Term
from tutelage.terms.unit import unit

_SMALLEST = 1e-7  # of the authors' code


@full_precision
def conditional_similarities(embeddings: Tensor) -> Tensor:
    """p(j | i), (B, B): (1 + cos(x_i, x_j)) / 2, divided by the sum of its row.

    Args:
        embeddings: (B, ...), flattened per sample. A sample of zeros has a cosine of 0 with all.
    """
    flat = embeddings.flatten(1)
    directions = unit(flat / scale_of(flat))
    similarity = (directions @ directions.T + 1) / 2
    return similarity / similarity.sum(1, keepdim=True)


@full_precision
def probabilistic_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """The loss of PKT, the mean over all pairs i, j of p^T(j | i) log(p^T(j | i) / p^S(j | i)).

    1e-7 is added to both probabilities in the logarithm, as in the authors' code.

    Args:
        student, teacher: embeddings (B, ...), of any widths. No gradient reaches the teacher's.

    Returns:
        () nats, independent of the scale of either side; for the mean of the rows' divergences multiply it by B.
    """
    check_samples(student, teacher)
    p, q = conditional_similarities(student), conditional_similarities(teacher.detach())
    return (q * ((q + _SMALLEST).log() - (p + _SMALLEST).log())).mean()


class ProbabilisticTransfer(Term):
    """``probabilistic_transfer`` of the embeddings times B, the mean divergence of a row: one value ()."""

    reads_labels = False
    roles = ("embedding",)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """() nats."""
        embeddings = student["embedding"]
        return probabilistic_transfer(embeddings, self.required(teacher)["embedding"]) * len(embeddings)
