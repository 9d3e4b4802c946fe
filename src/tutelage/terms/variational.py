"""Variational information distillation (VID): Ahn, Hu, Damianou, Lawrence, Dai 2019, arXiv 1904.05835."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs
from tutelage.terms.precision import full_precision
from tutelage.terms.shapes import pooled_to_smaller
from tutelage.terms.stages import StagePairs
from tutelage.terms.term import BUILD_FIRST

_SMALLEST = 1e-5  # of a variance, as in the authors' code


@full_precision
def gaussian_information(mean: Tensor, teacher: Tensor, variance: Tensor) -> Tensor:
    """-log q(t | s) of VID without its constant: the mean over elements of (t - mu)^2 / (2 sigma^2) + log(sigma^2) / 2.

    Minimizing it maximizes a lower bound of the mutual information of both features.

    Args:
        mean: mu(s), the student's features after a network of its own, (B, C, H, W).
        teacher: t, of the same shape; no gradient reaches it.
        variance: sigma^2, (C,), one for each channel, above 0.

    Returns:
        (B,) nats, which may be below 0.

    Raises:
        TutelageError: the shapes differ.
    """
    if mean.shape != teacher.shape:
        raise TutelageError(
            f"predicted features {tuple(mean.shape)} and the teacher's {tuple(teacher.shape)} cannot be compared; make "
            "the shapes equal with a regressor"
        )
    sigma2 = variance.view(-1, *[1] * (mean.ndim - 2))
    return 0.5 * ((teacher.detach() - mean).square() / sigma2 + sigma2.log()).flatten(1).mean(1)


class _Prediction(nn.Module):
    """The mean and the variance of the teacher's features given the student's: 1x1 convolutions and one scale each."""

    def __init__(self, channels: int, target_channels: int, variance: float) -> None:
        super().__init__()
        self.mean = nn.Sequential(
            nn.Conv2d(channels, target_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(target_channels, target_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(target_channels, target_channels, 1, bias=False),
        )
        self.scale = nn.Parameter(torch.full((target_channels,), math.log(math.expm1(variance - _SMALLEST))))

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """The means (B, target_channels, H, W) and the variances (target_channels,)."""
        return self.mean(maps), F.softplus(self.scale) + _SMALLEST


class VariationalInformation(StagePairs):
    """The sum of ``gaussian_information`` over pairs of stages, with trained means and variances, per sample (B,).

    The mean is predicted from the student's map by three 1x1 convolutions with ReLU between them; the larger of two
    maps is average-pooled to the size of the smaller one.

    Args:
        pairs: (student role, teacher role) of each pair of stages.
        variance: the initial variance of each channel, 5 in the authors' code.
    """

    def __init__(self, pairs: tuple[tuple[str, str], ...], variance: float = 5.0) -> None:
        super().__init__(pairs)
        if not _SMALLEST < variance < float("inf"):
            raise TutelageError(f"the initial variance must be a finite number above {_SMALLEST}, got {variance}")
        self.initial_variance = variance
        self.predictions: nn.ModuleList | None = None

    def build(self, student: Outputs, teacher: Outputs | None) -> None:
        """Create the networks that predict the teacher's features."""
        if self.predictions is not None or teacher is None:
            return
        maps = self.maps(*self.outputs(student, teacher))
        predictions = [_Prediction(m.shape[1], target.shape[1], self.initial_variance) for m, target in maps]
        self.predictions = nn.ModuleList(predictions).to(maps[0][0])

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,) nats."""
        predictions = self.required(self.predictions, "its predictions", BUILD_FIRST)
        values = []
        for prediction, pair in zip(predictions, self.maps(student, teacher), strict=True):
            maps, target = pooled_to_smaller(*pair)
            mean, variance = prediction(maps)
            values.append(gaussian_information(mean, target, variance))
        return torch.stack(values).sum(0)
