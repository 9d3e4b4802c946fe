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
REFERENCE_PIXELS = 32 * 32  # of the maps that the published weight was found on


@full_precision
def attention_map(features: Tensor, p: float = 2.0) -> Tensor:
    """Q = vec(sum_c |A_c|^p) / ||.||_2: (B, C, H, W) activations to (B, H W) maps of unit length.

    Of tokens (B, T, D) the sum runs over D, and Q is (B, T). Every token counts, a class token and padding among them;
    those that are not to count are sliced off or multiplied by 0 before. Tokens are no part of the paper.

    Q does not depend on the activations' scale, which is taken out first so that no power of it over- or underflows.
    """
    size = features.abs()
    scale = size.detach().amax(tuple(range(1, size.ndim)), keepdim=True)
    energy = (size / scale.where(scale > 0, 1.0)).pow(p).sum(_channels(features)).flatten(1)
    return F.normalize(energy, dim=1)


def _channels(features: Tensor) -> int:
    """The axis of the channels of a map (B, C, H, W), or of the width of tokens (B, T, D).

    Raises:
        TutelageError: for another number of axes.
    """
    if features.ndim not in (3, 4):
        raise TutelageError(
            f"attention is of maps (B, C, H, W) or tokens (B, T, D), got {tuple(features.shape)}; name other layers"
        )
    return 1 if features.ndim == 4 else 2


@full_precision
def attention_transfer(student: Tensor, teacher: Tensor, p: float = 2.0, form: Form = "code") -> Tensor:
    """How far apart two activations' attention maps are, per sample.

    ``form="code"``, the authors' release: mean over H W of (Q_S - Q_T)^2. ``form="paper"``, equation 2 without its
    beta/2: the un-squared ||Q_S - Q_T||_2, whose gradient keeps its size however close the maps are.

    Args:
        student, teacher: (B, C, H, W) with any channel counts; the larger map is average-pooled to the smaller one's
            size. Or tokens (B, T, D) with any widths, as many on both sides. No gradient reaches the teacher's.
        p: the power of the map.
        form: see above.

    Returns:
        (B,), no unit.
    """
    return _distance(student, pooled_attention(teacher.detach(), size_of(student), p), p, form)


@full_precision
def pooled_attention(features: Tensor, size: tuple[int, ...], p: float = 2.0) -> Tensor:
    """``attention_map`` of a map that was average-pooled along each axis on which it is larger than ``size``.

    Args:
        features: (B, C, H, W), or tokens (B, T, D).
        size: (H, W) of the other network's map, or (T,).
        p: as in ``attention_map``.

    Returns:
        (B, min(H, size[0]), min(W, size[1])), or (B, T), each sample's of unit length.

    Raises:
        TutelageError: tokens meet a map or another number of tokens.
    """
    own = size_of(features)
    if len(own) != len(size) or (len(own) == 1 and own != size):
        other = f"tokens (B, {size[0]}, D)" if len(size) == 1 else f"maps (B, C, {size[0]}, {size[1]})"
        raise TutelageError(
            f"the attention of features {tuple(features.shape)} cannot be compared with that of {other}; bring both to "
            "the same tokens, [:, 1:] without a class token, or both to maps"
        )
    smaller = tuple(min(sides) for sides in zip(own, size, strict=True))
    pooled = features if own == smaller else F.adaptive_avg_pool2d(features, [*smaller])  # type: ignore[arg-type]
    return attention_map(pooled, p).view(-1, *smaller)


def size_of(features: Tensor) -> tuple[int, ...]:
    """(H, W) of a map (B, C, H, W), (T,) of tokens (B, T, D)."""
    return tuple(features.shape[2:]) if _channels(features) == 1 else (features.shape[1],)


def _distance(student: Tensor, attention: Tensor, p: float, form: Form) -> Tensor:
    """``attention_transfer`` to a teacher's ``pooled_attention``, (B, h, w) or (B, T)."""
    check_samples(student, attention)
    difference = (pooled_attention(student, tuple(attention.shape[1:]), p) - attention).flatten(1)
    if form == "paper":
        # Its gradient where the maps are equal is 0; that of a square root written out would be NaN.
        distance: Tensor = torch.linalg.vector_norm(difference, dim=1)
        return distance
    return difference.square().mean(1)


class AttentionTransfer(Term):
    """The sum of ``attention_transfer`` over pairs of stages, per sample (B,).

    In the code's form it is multiplied by H W / 32^2, with H x W the first pair's maps: the mean over pixels shrinks as
    maps grow, and without the factor a weight found at 32 x 32 would collapse a student of 8 x 8 inputs. Tokens count
    as pixels there: T / 32^2.

    Once it is built for a student's sizes, it asks the teacher for attention maps and not for the stages.

    Args:
        pairs: (student role, teacher role) of each pair of stages, the largest maps first.
        p, form: as in ``attention_transfer``.
    """

    reads_labels = False

    def __init__(self, pairs: tuple[tuple[str, str], ...], p: float = 2.0, form: Form = "code") -> None:
        super().__init__()
        if not pairs:
            raise TutelageError("attention transfer needs at least one pair of stages; name some with roles={...}")
        self.pairs, self.p, self.form = pairs, float(p), form
        self.roles = tuple(student for student, _ in pairs)
        self._asked: tuple[str, ...] = tuple(teacher for _, teacher in pairs)

    @property
    def teacher_roles(self) -> tuple[str, ...]:
        """The teacher's side of the pairs; once built, its attention there."""
        return self._asked

    def build(self, student: Outputs, teacher: Outputs | None) -> None:
        """Take the sizes of the student's maps."""
        attention = self._attention(student)
        if self._asked not in (tuple(theirs for _, theirs in self.pairs), attention):
            raise TutelageError(
                f"this AttentionTransfer was built to compare {', '.join(self._asked)}, and another student's maps ask "
                f"for {', '.join(attention)}; give each student a term of its own"
            )
        self._asked = attention

    def _attention(self, student: Outputs) -> tuple[DerivedRole, ...]:
        """What is compared of the teacher with a student whose maps have these sizes."""
        return tuple(
            DerivedRole(pooled_attention, theirs, size=size_of(student[ours]), p=self.p) for ours, theirs in self.pairs
        )

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,), no unit."""
        if teacher is None:
            raise ValueError("AttentionTransfer needs a teacher's outputs")
        ours, theirs = [student[role] for role in self.roles], [teacher[role] for role in self._attention(student)]
        each = [_distance(s, t.detach(), self.p, self.form) for s, t in zip(ours, theirs, strict=True)]
        total = torch.stack(each).sum(0)
        return total if self.form == "paper" else total * theirs[0][0].numel() / REFERENCE_PIXELS
