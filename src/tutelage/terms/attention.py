"""Attention transfer: Zagoruyko, Komodakis 2017, arXiv 1612.03928."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs, at_least_float32
from tutelage.terms.term import Term

Form = Literal["code", "paper"]
REFERENCE_PIXELS = 32 * 32  # of the maps that the published weight was found on


def attention_map(features: Tensor, p: float = 2.0) -> Tensor:
    """Q = vec(sum_c |A_c|^p) / ||.||_2: (B, C, H, W) activations to (B, H W) maps of unit length.

    Q does not depend on the activations' scale, which is taken out first so that no power of it over- or underflows.
    """
    size = at_least_float32(features).abs()
    scale = size.detach().amax((1, 2, 3), keepdim=True)
    energy = (size / scale.where(scale > 0, 1.0)).pow(p).sum(1).flatten(1)
    return F.normalize(energy, dim=1)


def attention_transfer(student: Tensor, teacher: Tensor, p: float = 2.0, form: Form = "code") -> Tensor:
    """How far apart two activations' attention maps are, per sample.

    ``form="code"``, the authors' release: mean over H W of (Q_S - Q_T)^2. ``form="paper"``, equation 2 without its
    beta/2: the un-squared ||Q_S - Q_T||_2, whose gradient keeps its size however close the maps are.

    Args:
        student, teacher: (B, C, H, W) with any channel counts; the larger map is average-pooled to the smaller one's
            size. No gradient reaches the teacher's.
        p: the power of the map.
        form: see above.

    Returns:
        (B,), no unit.
    """
    height, width = _common_size(student, teacher)
    maps = [attention_map(_pooled(features, height, width), p) for features in (student, teacher.detach())]
    if form == "paper":
        # Its gradient where the maps are equal is 0; that of a square root written out would be NaN.
        distance: Tensor = torch.linalg.vector_norm(maps[0] - maps[1], dim=1)
        return distance
    return (maps[0] - maps[1]).square().mean(1)


def _common_size(student: Tensor, teacher: Tensor) -> tuple[int, int]:
    return min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])


def _pooled(features: Tensor, height: int, width: int) -> Tensor:
    same = features.shape[2:] == (height, width)
    return features if same else F.adaptive_avg_pool2d(at_least_float32(features), (height, width))


class AttentionTransfer(Term):
    """The sum of ``attention_transfer`` over pairs of stages, per sample (B,).

    In the code's form it is multiplied by H W / 32^2, with H x W the first pair's maps: the mean over pixels shrinks as
    maps grow, and without the factor a weight found at 32 x 32 would collapse a student of 8 x 8 inputs.

    Args:
        pairs: (student role, teacher role) of each pair of stages, the largest maps first.
        p, form: as in ``attention_transfer``.
    """

    def __init__(self, pairs: tuple[tuple[str, str], ...], p: float = 2.0, form: Form = "code") -> None:
        super().__init__()
        if not pairs:
            raise TutelageError("attention transfer needs at least one pair of stages; name some with roles={...}")
        self.pairs, self.p, self.form = pairs, p, form
        self.roles = tuple(student for student, _ in pairs)

    @property
    def teacher_roles(self) -> tuple[str, ...]:
        """The teacher's side of the pairs."""
        return tuple(teacher for _, teacher in self.pairs)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,), no unit."""
        if teacher is None:
            raise ValueError("AttentionTransfer needs a teacher's outputs")
        each = [attention_transfer(student[ours], teacher[theirs], self.p, self.form) for ours, theirs in self.pairs]
        total = torch.stack(each).sum(0)
        return total if self.form == "paper" else total * self._pixels(student, teacher) / REFERENCE_PIXELS

    def _pixels(self, student: Outputs, teacher: Outputs) -> int:
        ours, theirs = self.pairs[0]
        height, width = _common_size(student[ours], teacher[theirs])
        return height * width
