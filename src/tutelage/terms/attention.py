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


def attention_map(features: Tensor, p: float = 2.0) -> Tensor:
    """Q = vec(sum_c |A_c|^p) / ||.||_2: (B, C, H, W) activations to (B, H W) maps of unit length."""
    energy = at_least_float32(features).abs().pow(p).sum(1).flatten(1)
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
    height, width = (min(a, b) for a, b in zip(student.shape[2:], teacher.shape[2:], strict=True))
    maps = [attention_map(_pooled(features, height, width), p) for features in (student, teacher.detach())]
    if form == "paper":
        # Its gradient where the maps are equal is 0; that of a square root written out would be NaN.
        distance: Tensor = torch.linalg.vector_norm(maps[0] - maps[1], dim=1)
        return distance
    return (maps[0] - maps[1]).square().mean(1)


def _pooled(features: Tensor, height: int, width: int) -> Tensor:
    same = features.shape[2:] == (height, width)
    return features if same else F.adaptive_avg_pool2d(at_least_float32(features), (height, width))


class AttentionTransfer(Term):
    """The sum of ``attention_transfer`` over pairs of stages, per sample (B,).

    Args:
        pairs: (student role, teacher role) of each pair of stages.
        p, form: as in ``attention_transfer``.
        per_pixel: whether each stage's value is the authors' mean over its H W pixels. Without it the sum over pixels
            is kept, ||Q_S - Q_T||^2, whose size does not depend on the input's resolution.
    """

    def __init__(
        self, pairs: tuple[tuple[str, str], ...], p: float = 2.0, form: Form = "code", per_pixel: bool = True
    ) -> None:
        super().__init__()
        if not pairs:
            raise TutelageError("attention transfer needs at least one pair of stages; name some with roles={...}")
        self.pairs, self.p, self.form, self.per_pixel = pairs, p, form, per_pixel
        self.roles = tuple(student for student, _ in pairs)

    @property
    def teacher_roles(self) -> tuple[str, ...]:
        """The teacher's side of the pairs."""
        return tuple(teacher for _, teacher in self.pairs)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,), no unit."""
        if teacher is None:
            raise ValueError("AttentionTransfer needs a teacher's outputs")
        total = at_least_float32(student[self.roles[0]]).new_zeros(len(student[self.roles[0]]))
        for ours, theirs in self.pairs:
            value = attention_transfer(student[ours], teacher[theirs], self.p, self.form)
            if self.form == "code" and not self.per_pixel:
                height, width = (
                    min(a, b) for a, b in zip(student[ours].shape[2:], teacher[theirs].shape[2:], strict=True)
                )
                value = value * (height * width)
            total = total + value
        return total
