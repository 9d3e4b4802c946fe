"""Overhaul of feature distillation (OFD): Heo, Kim, Yun, Park, Kwak, Choi 2019, arXiv 1904.01866."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs
from tutelage.terms.precision import full_precision
from tutelage.terms.shapes import pooled_to_smaller
from tutelage.terms.stages import StagePairs
from tutelage.terms.term import BUILD_FIRST


@full_precision
def partial_distance(student: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
    """The partial squared distance of OFD to the teacher's features after a margin ReLU, per sample.

        D = sum over elements of (s - max(t, m))^2, or 0 where s <= max(t, m) and t <= 0

    Where the teacher's ReLU lets nothing pass, the student's value only has to be as low: its distance from below does
    not matter.

    Args:
        student: s, the student's features after a transform of its own, before an activation, (B, C, ...).
        teacher: t, the teacher's features before the ReLU, of the same shape. No gradient reaches them.
        margin: m <= 0, (C,), for each channel the mean of its values below 0; no gradient reaches it.

    Returns:
        (B,), in squared units of the features.

    Raises:
        TutelageError: the shapes differ.
    """
    if student.shape != teacher.shape:
        raise TutelageError(
            f"features {tuple(student.shape)} and the teacher's {tuple(teacher.shape)} cannot be compared; make the "
            "shapes equal with a regressor"
        )
    teacher, limits = teacher.detach(), margin.detach().view(-1, *[1] * (teacher.ndim - 2))
    target = teacher.maximum(limits)
    low_enough = (student <= target) & (teacher <= 0)  # false for NaN, which stays visible
    return (student - target).square().masked_fill(low_enough, 0.0).flatten(1).sum(1)


class _Margin(nn.Module):
    """The mean of the values below 0 of each channel, over all batches so far; 0 for a channel without any.

    Args:
        channels: of the maps.
    """

    mean: Tensor
    count: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("count", torch.zeros(channels))

    def forward(self, maps: Tensor) -> Tensor:
        """The mean, (C,), after the maps (B, C, H, W) of a training step were added."""
        if self.training and torch.is_grad_enabled():
            self._add(maps)
        return self.mean

    @torch.no_grad()
    def _add(self, maps: Tensor) -> None:
        count = (maps < 0).sum((0, 2, 3)).to(self.count)
        self.count += count
        self.mean += (maps.clamp(max=0).sum((0, 2, 3)) - count * self.mean) / self.count.clamp(min=1)


class FeatureOverhaul(StagePairs):
    """The sum of ``partial_distance`` over pairs of maps before the ReLU, per sample (B,).

    The sum has weights 1, 1/2, 1/4, ... from the last pair backwards. A trained 1x1 convolution with batch
    normalisation, the connector, predicts the teacher's features from the student's. The margins are means over all
    batches so far; the authors compute them from the teacher's batch normalisation for normally distributed features.

    Args:
        pairs: (student role, teacher role) of each pair, the deepest last, for example ``preactivation1``.
    """

    def __init__(self, pairs: tuple[tuple[str, str], ...]) -> None:
        super().__init__(pairs)
        self.connectors: nn.ModuleList | None = None
        self.margins: nn.ModuleList | None = None

    def build(self, student: Outputs, teacher: Outputs | None) -> None:
        """Create the connectors and the margins."""
        if self.connectors is not None or teacher is None:
            return
        maps = self.maps(*self.outputs(student, teacher))
        self.connectors = nn.ModuleList(_connector(m.shape[1], t.shape[1]) for m, t in maps).to(maps[0][0])
        self.margins = nn.ModuleList(_Margin(t.shape[1]) for _, t in maps).to(maps[0][0])

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,), in squared units of the teacher's features."""
        connectors = self.required(self.connectors, "its connectors", BUILD_FIRST)
        margins = self.required(self.margins, "its margins", BUILD_FIRST)
        values = []
        for place, (connector, margin, (maps, target)) in enumerate(
            zip(connectors, margins, self.maps(student, teacher), strict=True)
        ):
            limits = margin(target)
            value = partial_distance(*pooled_to_smaller(connector(maps), target), limits)
            values.append(value / 2 ** (len(self.pairs) - 1 - place))
        return torch.stack(values).sum(0)


def _connector(channels: int, target_channels: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, target_channels, 1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(target_channels))
