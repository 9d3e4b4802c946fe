"""The Gaussian class-conditional simplex loss: Ali, Migliorati, Bianchi, Magli 2020, arXiv 2010.15487."""

from __future__ import annotations

import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.models.outputs import Outputs, class_logits
from tutelage.terms.precision import full_precision
from tutelage.terms.targets import checked_labels
from tutelage.terms.term import Term

MIN_SAMPLES = 3  # of a class in a batch, for the class to count
MIN_VARIANCE = 1e-6  # the lower bound of variances in quotients and logarithms


@full_precision
def gaussian_simplex(
    outputs: Tensor, targets: Tensor, scale: float = 70.0, tail: float = 0.2, *, full: bool = False
) -> Tensor:
    """The mean of A_i + tail B_i over the classes i with 3 samples or more in the batch.

        A_i = -log |S_i| - D + tr S_i + ||m_i - t_i||^2,   twice KL(N(m_i, S_i) || N(t_i, I)),   t_i = scale e_i
        B_i = sum_d |kurtosis_id - 3|

    m_i and S_i are the mean and the covariance (divided by n_i) of the outputs of class i; the kurtosis is the fourth
    central moment divided by the squared variance. [from memory: the formula, and that B_i exists; inferred: the mean
    over classes, and the diagonal of S_i]

    Args:
        outputs: (B, D), with D the number of classes.
        targets: (B,) int64, ``-1`` for samples that do not count; or soft labels (B, D), whose largest class counts.
        scale: the distance of a vertex from the origin; two vertices are sqrt(2) times as far apart.
        tail: the weight of B.
        full: use the determinant of the whole covariance for classes with 2 D samples or more. The diagonal does not
            penalise correlations.

    Returns:
        (), without unit; 0 if no class counts. Variances are bounded below by 1e-6 in quotients and logarithms. It is
        one value for the whole batch: samples cannot be weighted.
    """
    size = class_logits(outputs).shape[1]
    labels = checked_labels(targets, size)
    one_hot = (labels[:, None] == torch.arange(size, device=labels.device)).to(outputs)  # zeros for -1
    count = one_hot.sum(0)
    averaging = one_hot.T / count.clamp(min=1)[:, None]  # (classes, B): its product with (B, D) is the mean per class
    mean = averaging @ outputs
    centred = outputs - mean[labels.clamp(min=0)]
    variance = averaging @ centred.square()
    bounded = variance.clamp(min=MIN_VARIANCE)
    log_volume, identity = bounded.log().sum(1), torch.eye(size, dtype=outputs.dtype, device=outputs.device)
    if full:
        covariance = torch.einsum("cb,bd,be->cde", averaging, centred, centred)
        enough = (count >= 2 * size)[:, None, None]
        log_determinant = torch.where(enough, covariance + MIN_VARIANCE * identity, identity).slogdet().logabsdet
        log_volume = torch.where(enough[:, 0, 0], log_determinant, log_volume)
    divergence = variance.sum(1) - log_volume - size + (mean - scale * identity).square().sum(1)
    kurtosis = averaging @ centred.pow(4) / bounded.square()
    value = divergence + tail * (kurtosis - 3).abs().sum(1)
    counts = count >= MIN_SAMPLES
    return value.where(counts, 0.0).sum() / counts.sum().clamp(min=1)


class GaussianSimplex(Term):
    """``gaussian_simplex`` of the outputs of a role and the batch's targets: one value ().

    With several processes, each uses the statistics of its own share of the batch.

    Args:
        role: the student's role, (B, classes).
        scale, tail, full: as in ``gaussian_simplex``.
    """

    reads_teacher = False

    def __init__(self, role: str, scale: float = 70.0, tail: float = 0.2, *, full: bool = False) -> None:
        super().__init__()
        self.roles, self.scale, self.tail, self.full = (role,), scale, tail, full

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(), without unit."""
        targets = self.required(batch, "the batch, for its targets").targets
        return gaussian_simplex(student[self.roles[0]], targets, self.scale, self.tail, full=self.full)
