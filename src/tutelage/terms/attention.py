"""Attention transfer: Zagoruyko, Komodakis 2017, arXiv 1612.03928."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.models.derived_role import DerivedRole
from tutelage.models.outputs import Outputs
from tutelage.terms.precision import full_precision
from tutelage.terms.shapes import check_samples
from tutelage.terms.term import Term

Form = Literal["code", "paper"]
REFERENCE_PIXELS = 32 * 32  # of the largest maps for which the published weight was chosen


@full_precision
def attention_map(features: Tensor, p: float = 2.0) -> Tensor:
    """The attention map of activations A, Q = vec(sum_c |A_c|^p) / ||sum_c |A_c|^p||_2.

    Q does not depend on the scale of the activations, which is divided out first so that no power over- or underflows.

    Args:
        features: A, (B, C, H, W); or tokens (B, T, D), which the paper does not have, with the sum over D. Every token
            counts, also a class token and padding: slice off the others, or multiply them by 0.
        p: the power, 1 or more.

    Returns:
        (B, H W) or (B, T), of unit length per sample.
    """
    magnitude = features.abs()
    scale = magnitude.detach().amax(tuple(range(1, magnitude.ndim)), keepdim=True)
    energy = (magnitude / scale.where(scale > 0, 1.0)).pow(p).sum(_channels(features)).flatten(1)
    return F.normalize(energy, dim=1)


def _channels(features: Tensor) -> int:
    """The axis of the channels of a map (B, C, H, W), or of the width of tokens (B, T, D).

    Raises:
        TutelageError: for another number of axes.
    """
    if features.ndim not in (3, 4):
        raise TutelageError(
            f"attention maps need features (B, C, H, W) or tokens (B, T, D), got {tuple(features.shape)}; name other "
            "layers"
        )
    return 1 if features.ndim == 4 else 2


@full_precision
def attention_transfer(student: Tensor, teacher: Tensor, p: float = 2.0, form: Form = "code") -> Tensor:
    """The distance of the attention maps of two activations, per sample (attention transfer, AT).

    ``form="code"``, as in the authors' release, is the mean over pixels of (Q_S - Q_T)^2. ``form="paper"`` is equation
    2 without its beta/2: ||Q_S - Q_T||_2, not squared, whose gradient has the same length however close the maps are.

    Args:
        student, teacher: activations (B, C, H, W), with any numbers of channels; the larger map is average-pooled to
            the size of the smaller one. Or tokens (B, T, D), of any widths and equal number. No gradient reaches the
            teacher's.
        p: the power in ``attention_map``.
        form: "code" or "paper".

    Returns:
        (B,), without unit.
    """
    return _distance(student, pooled_attention(teacher.detach(), size_of(student), p), p, form)


@full_precision
def pooled_attention(features: Tensor, size: tuple[int, ...], p: float = 2.0) -> Tensor:
    """``attention_map`` of a map, average-pooled first along each axis on which it is larger than ``size``.

    Args:
        features: (B, C, H, W), or tokens (B, T, D).
        size: (H, W) of the other network's map, or (T,).
        p: as in ``attention_map``.

    Returns:
        (B, min(H, size[0]), min(W, size[1])), or (B, T), of unit length per sample.

    Raises:
        TutelageError: one is a map and the other tokens, or the numbers of tokens differ.
    """
    feature_size = size_of(features)
    if len(feature_size) != len(size) or (len(feature_size) == 1 and feature_size != size):
        other = f"tokens (B, {size[0]}, D)" if len(size) == 1 else f"maps (B, C, {size[0]}, {size[1]})"
        raise TutelageError(
            f"the attention of features {tuple(features.shape)} cannot be compared with that of {other}; use the same "
            "tokens on both sides, [:, 1:] to drop a class token, or maps on both sides"
        )
    smaller = tuple(min(sides) for sides in zip(feature_size, size, strict=True))
    if feature_size != smaller:
        features = F.adaptive_avg_pool2d(features, [*smaller])  # type: ignore[arg-type]
    return attention_map(features, p).view(-1, *smaller)


def size_of(features: Tensor) -> tuple[int, ...]:
    """(H, W) of a map (B, C, H, W), (T,) of tokens (B, T, D)."""
    return tuple(features.shape[2:]) if _channels(features) == 1 else (features.shape[1],)


def _distance(student: Tensor, attention: Tensor, p: float, form: Form) -> Tensor:
    """``attention_transfer`` from the teacher's ``pooled_attention``, (B, h, w) or (B, T)."""
    check_samples(student, attention)
    difference = (pooled_attention(student, tuple(attention.shape[1:]), p) - attention).flatten(1)
    if form == "paper":
        # Its gradient at 0 is 0; that of an explicit square root would be NaN.
        distance: Tensor = torch.linalg.vector_norm(difference, dim=1)
        return distance
    return difference.square().mean(1)


class AttentionTransfer(Term):
    """The sum of ``attention_transfer`` over pairs of stages, per sample (B,).

    With ``form="code"`` it is multiplied by H W / 32^2, with H x W the size of the first pair's maps. The mean over
    pixels is larger for smaller maps; without the factor, a weight chosen for 32 x 32 maps would make a student of 8 x
    8 inputs collapse. For tokens the factor is T / 32^2.

    Once built, the term reads the teacher's attention maps, not its stages.

    Args:
        pairs: (student role, teacher role) of each pair of stages, largest maps first.
        p, form: as in ``attention_transfer``.
    """

    reads_labels = False

    def __init__(self, pairs: tuple[tuple[str, str], ...], p: float = 2.0, form: Form = "code") -> None:
        super().__init__()
        if not pairs:
            raise TutelageError("attention transfer needs at least one pair of stages; name some with roles={...}")
        self.pairs, self.p, self.form = pairs, float(p), form
        self.roles = tuple(student for student, _ in pairs)
        self._teacher_roles: tuple[str, ...] = tuple(teacher for _, teacher in pairs)

    @property
    def teacher_roles(self) -> tuple[str, ...]:
        """The teacher's roles of the pairs; once built, the derived roles of their attention."""
        return self._teacher_roles

    def build(self, student: Outputs, teacher: Outputs | None) -> None:
        """Set the derived roles of the teacher from the sizes of the student's maps."""
        derived = self._derived_roles(student)
        if self._teacher_roles not in (tuple(role for _, role in self.pairs), derived):
            raise TutelageError(
                f"this AttentionTransfer was built to compare {', '.join(self._teacher_roles)}, and another student's "
                f"maps need {', '.join(derived)}; give each student a term of its own"
            )
        self._teacher_roles = derived

    def _derived_roles(self, student: Outputs) -> tuple[DerivedRole, ...]:
        """The teacher's attention maps that are compared with a student whose maps have these sizes."""
        return tuple(
            DerivedRole(pooled_attention, teacher_role, size=size_of(student[role]), p=self.p)
            for role, teacher_role in self.pairs
        )

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,), without unit."""
        targets = [self.required(teacher)[role].detach() for role in self._derived_roles(student)]
        stages = zip(self.roles, targets, strict=True)
        total = torch.stack([_distance(student[role], target, self.p, self.form) for role, target in stages]).sum(0)
        return total if self.form == "paper" else total * targets[0][0].numel() / REFERENCE_PIXELS
