"""Neuron selectivity transfer (NST): Huang, Wang 2017, arXiv 1707.01219."""

from __future__ import annotations

import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs
from tutelage.terms.precision import full_precision, scale_of
from tutelage.terms.shapes import check_samples, pooled_to_smaller
from tutelage.terms.stages import StagePairs
from tutelage.terms.unit import unit


@full_precision
def neuron_selectivity(student: Tensor, teacher: Tensor) -> Tensor:
    """The squared maximum mean discrepancy of two sets of neurons, per sample (neuron selectivity transfer, NST).

        MMD^2 = mean k(t, t') + mean k(s, s') - 2 mean k(s, t),  k(x, y) = (x . y)^2

    Each channel of a map is one neuron: its activations at all positions, scaled to length 1. The means run over all
    pairs of channels.

    Args:
        student, teacher: maps (B, C, H, W), with any numbers of channels; the larger map is average-pooled to the size
            of the smaller one. No gradient reaches the teacher's.

    Returns:
        (B,), without unit, independent of the scale of each channel.

    Raises:
        TutelageError: features that are no maps.
    """
    for features in (student, teacher):
        if features.ndim != 4:
            raise TutelageError(f"NST needs maps (B, C, H, W), got {tuple(features.shape)}; name other layers")
    check_samples(student, teacher)
    student, teacher = (maps / scale_of(maps) for maps in (student, teacher.detach()))
    s, t = (unit(maps.flatten(2)) for maps in pooled_to_smaller(student, teacher))
    return _kernel(t, t) + _kernel(s, s) - 2 * _kernel(s, t)


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.mT).square().mean((1, 2))


class NeuronSelectivity(StagePairs):
    """The sum of ``neuron_selectivity`` over pairs of stages, per sample (B,)."""

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,), without unit."""
        return torch.stack([neuron_selectivity(*maps) for maps in self.maps(student, teacher)]).sum(0)
