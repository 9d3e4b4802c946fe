"""Activation boundaries (AB): Heo, Lee, Yun, Choi 2019, arXiv 1811.03233."""

from __future__ import annotations

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


@full_precision
def activation_boundaries(student: Tensor, teacher: Tensor, margin: float = 1.0) -> Tensor:
    """The boundary loss of AB, per sample: which of the teacher's neurons are active, with a squared hinge.

        L = sum over neurons of [t > 0] max(0, m - s)^2 + [t <= 0] max(0, m + s)^2

    Args:
        student: s, the student's values for the neurons, before an activation function: (B, ...).
        teacher: t, of the same shape, before or after a ReLU. No gradient reaches it.
        margin: m >= 0.

    Returns:
        (B,), summed over neurons.

    Raises:
        TutelageError: the shapes differ.
    """
    if student.shape != teacher.shape:
        raise TutelageError(
            f"neurons {tuple(student.shape)} and the teacher's {tuple(teacher.shape)} cannot be compared; make the "
            "shapes equal with a regressor"
        )
    teacher = teacher.detach()
    sign = torch.where(teacher > 0, 1.0, -1.0).to(student)
    sign = sign.masked_fill(teacher.isnan(), torch.nan)  # a comparison would hide it
    return F.relu(margin - sign * student).square().flatten(1).sum(1)


class ActivationBoundaries(StagePairs):
    """``activation_boundaries`` of pairs of stages, the mean over the neurons of each, per sample (B,).

    The sum over pairs has weights 1, 1/2, 1/4, ... from the last pair backwards, as in the authors' code. A trained 1x1
    convolution with batch normalisation, the connector, predicts the teacher's neurons from the student's map.

    Args:
        pairs: (student role, teacher role) of each pair of stages, the deepest last.
        margin: as in ``activation_boundaries``.
    """

    def __init__(self, pairs: tuple[tuple[str, str], ...], margin: float = 1.0) -> None:
        super().__init__(pairs)
        if not 0 <= margin < float("inf"):
            raise TutelageError(f"the margin must be a finite number of 0 or more, got {margin}")
        self.margin = margin
        self.connectors: nn.ModuleList | None = None

    def build(self, student: Outputs, teacher: Outputs | None) -> None:
        """Create the connectors."""
        if self.connectors is not None or teacher is None:
            return
        maps = self.maps(*self.outputs(student, teacher))
        connectors = [
            nn.Sequential(nn.Conv2d(m.shape[1], t.shape[1], 1, bias=False), nn.BatchNorm2d(t.shape[1])) for m, t in maps
        ]
        self.connectors = nn.ModuleList(connectors).to(maps[0][0])

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,), without unit."""
        connectors = self.required(self.connectors, "its connectors", BUILD_FIRST)
        values = []
        for place, (connector, pair) in enumerate(zip(connectors, self.maps(student, teacher), strict=True)):
            maps, target = pooled_to_smaller(*pair)
            value = activation_boundaries(connector(maps), target, self.margin) / target[0].numel()
            values.append(value / 2 ** (len(self.pairs) - 1 - place))
        return torch.stack(values).sum(0)
