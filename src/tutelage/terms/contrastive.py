"""Contrastive representation distillation (CRD): Tian, Krishnan, Isola 2020, arXiv 1910.10699."""

from __future__ import annotations

from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs, at_least_float32
from tutelage.terms.precision import full_precision
from tutelage.terms.shapes import check_samples
from tutelage.terms.term import BUILD_FIRST, Term
from tutelage.terms.unit import unit

_SMALLEST = 1e-7  # of the authors' code


@full_precision
def in_batch_contrast(student: Tensor, teacher: Tensor, temperature: float = 0.07) -> Tensor:
    """A contrastive loss with the batch's other samples as negatives, the mean of both directions, per sample.

        -1/2 log softmax_j(s_i . t_j / tau)_i - 1/2 log softmax_j(t_i . s_j / tau)_i

    Args:
        student, teacher: embeddings of unit length, (B, D). Gradients flow into both, since both are projections.
        temperature: tau > 0.

    Returns:
        (B,) nats; log B on average for random embeddings.
    """
    check_samples(student, teacher)
    similarity = student @ teacher.T / temperature
    return -0.5 * (similarity.log_softmax(1).diagonal() + similarity.log_softmax(0).diagonal())


@full_precision
def noise_contrast(scores: Tensor, samples: int) -> Tensor:
    """The noise-contrastive estimation of CRD, per sample: the positive against K negatives of a memory.

        L = -log (h_0 / (h_0 + K / M + eps)) - sum_{k=1}^K log ((K / M) / (h_k + K / M + eps)),  eps = 1e-7

    Args:
        scores: h >= 0, (B, 1 + K), the positive's first: exp(s . t / tau) divided by its normalizing constant.
        samples: M, the number of samples in the memory.

    Returns:
        (B,) nats.
    """
    noise = (scores.shape[1] - 1) / samples
    positive = (scores[:, 0] / (scores[:, 0] + noise + _SMALLEST)).log()
    negatives = (noise / (scores[:, 1:] + noise + _SMALLEST)).log()
    return -(positive + negatives.sum(1))


class ProjectedEmbeddings(Term):
    """Trained linear projections of the embeddings of student and teacher to unit vectors of one width."""

    reads_labels = False
    roles = ("embedding",)

    def __init__(self, width: int, temperature: float) -> None:
        super().__init__()
        if width < 1 or not 0 < temperature < float("inf"):
            raise TutelageError(
                f"the width must be 1 or more and the temperature above 0, got {width} and {temperature}"
            )
        self.width, self.temperature = width, temperature
        self.projections: nn.ModuleList | None = None

    def build(self, student: Outputs, teacher: Outputs | None) -> None:
        """Create the projections from the widths of the embeddings."""
        if self.projections is not None or teacher is None:
            return
        both = self.outputs(student, teacher)
        layers = [nn.Linear(outputs["embedding"].flatten(1).shape[1], self.width) for outputs in both]
        self.projections = nn.ModuleList(layers).to(at_least_float32(both[0]["embedding"]))

    def projected(self, student: Outputs, teacher: Outputs | None) -> tuple[Tensor, Tensor]:
        """Unit vectors (B, width) of student and teacher."""
        layers = self.required(self.projections, "projections", BUILD_FIRST)
        embeddings = student["embedding"], self.required(teacher)["embedding"].detach()
        s, t = (
            unit(layer(at_least_float32(value).flatten(1))) for layer, value in zip(layers, embeddings, strict=True)
        )
        return s, t


class InBatchContrast(ProjectedEmbeddings):
    """``in_batch_contrast`` of projected embeddings, per sample (B,).

    Args:
        width: of the projections.
        temperature: tau > 0.
    """

    def __init__(self, width: int = 128, temperature: float = 0.07) -> None:
        super().__init__(width, temperature)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,) nats."""
        return in_batch_contrast(*self.projected(student, teacher), self.temperature)
