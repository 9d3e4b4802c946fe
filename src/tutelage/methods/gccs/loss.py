"""Gaussian outputs around the vertices of a simplex: Ali, Migliorati, Bianchi, Magli 2020, arXiv 2010.15487."""

from __future__ import annotations

import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.models.outputs import Outputs, class_logits
from tutelage.terms.precision import full_precision
from tutelage.terms.targets import checked_labels
from tutelage.terms.term import Term

FEWEST = 3  # samples of a class in a batch, for it to count
FLOOR = 1e-6  # of a variance that is divided by or whose logarithm is taken


@full_precision
def gaussian_simplex(
    outputs: Tensor, targets: Tensor, scale: float = 70.0, tail: float = 0.2, *, full: bool = False
) -> Tensor:
    """mean_i (A_i + tail B_i) over the classes i with 3 samples or more in the batch; the target variance is 1.

    With m_i and S_i the mean and the covariance (by 1/n_i) of class i's outputs, and t_i = scale e_i:
    A_i = -log |S_i| - D + tr S_i + ||m_i - t_i||^2, twice the KL divergence of N(m_i, S_i) from N(t_i, I);
    B_i = sum_d |kurtosis_id - 3|, the fourth central moment over the squared variance. [from memory: the formula; that
    B_i exists; inferred: the mean over classes, and S_i as its diagonal]

    Args:
        outputs: (B, D), with D the number of classes.
        targets: (B,) int64, ``-1`` for samples that are left out; or (B, D) soft labels, of which the largest counts.
        scale: the distance of a vertex from the origin; two vertices are sqrt(2) of it apart.
        tail: the weight of B.
        full: whether |S_i| is that of the whole covariance where a class has 2 D samples or more. With the diagonal,
            correlations are not penalised.

    Returns:
        (), no unit; 0 where no class counts. Variances below 1e-6 count as that where they are divided by, so that it
        is finite. A property of the batch as a whole: single samples cannot be weighted.
    """
    size = class_logits(outputs).shape[1]
    hard = checked_labels(targets, size)
    of_class = (hard[:, None] == torch.arange(size, device=hard.device)).to(outputs)  # -1 is of none
    count = of_class.sum(0)
    share = of_class.T / count.clamp(min=1)[:, None]  # (classes, B): times a column of the batch, its means by class
    mean = share @ outputs
    apart = outputs - mean[hard.clamp(min=0)]
    variance = share @ apart.square()
    bounded = variance.clamp(min=FLOOR)
    log_volume, unit = bounded.log().sum(1), torch.eye(size, dtype=outputs.dtype, device=outputs.device)
    if full:
        covariance = torch.einsum("cb,bd,be->cde", share, apart, apart)
        enough = (count >= 2 * size)[:, None, None]
        whole = torch.where(enough, covariance + FLOOR * unit, unit).slogdet().logabsdet
        log_volume = torch.where(enough[:, 0, 0], whole, log_volume)
    divergence = variance.sum(1) - log_volume - size + (mean - scale * unit).square().sum(1)
    kurtosis = share @ apart.pow(4) / bounded.square()
    value = divergence + tail * (kurtosis - 3).abs().sum(1)
    counts = count >= FEWEST
    return value.where(counts, 0.0).sum() / counts.sum().clamp(min=1)


class GaussianSimplex(Term):
    """``gaussian_simplex`` of the outputs that a role gives, and of the batch's targets: one value ().

    Several processes take the statistics of their own share of the batch each.

    Args:
        role: the student's role, (B, classes).
        scale, tail, full: as in ``gaussian_simplex``.
    """

    def __init__(self, role: str, scale: float = 70.0, tail: float = 0.2, *, full: bool = False) -> None:
        super().__init__()
        self.roles, self.scale, self.tail, self.full = (role,), scale, tail, full

    @property
    def teacher_roles(self) -> tuple[str, ...]:
        """It reads nothing of a teacher."""
        return ()

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(), no unit."""
        if batch is None:
            raise ValueError("GaussianSimplex needs the batch, for its targets")
        return gaussian_simplex(student[self.roles[0]], batch.targets, self.scale, self.tail, full=self.full)
