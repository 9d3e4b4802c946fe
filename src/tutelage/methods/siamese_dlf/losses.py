"""Point-wise and pair-wise distillation between the maps of two trackers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from tutelage.errors import TutelageError
from tutelage.terms.pixels import resized
from tutelage.terms.precision import full_precision
from tutelage.terms.shapes import check_samples
from tutelage.terms.unit import unit

MOST_POSITIONS = 11
"""Maps are max-pooled to so many positions a side before positions are compared with each other."""


@full_precision
def point_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """mean over positions p of ||s_p / |s_p| - t_p / |t_p|||^2, s_p and t_p the channels at p: (B,), from 0 to 4.

    Args:
        student, teacher: maps (B, C, H, W) of equally many channels. A teacher's map of another size is resized
            bilinearly. No gradient reaches the teacher's.

    Raises:
        TutelageError: the numbers of samples or channels differ.
    """
    check_samples(student, teacher)
    if student.shape[1] != teacher.shape[1]:
        raise TutelageError(
            f"positions of {student.shape[1]} and {teacher.shape[1]} channels cannot be compared; map the student's to "
            "the teacher's channels first"
        )
    target = resized(teacher.detach(), student.shape[2:])
    return (_positions(student) - _positions(target)).square().sum(2).mean(1)


@full_precision
def response_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """mean over positions p of KL(Bernoulli(sigma(v_p)) || Bernoulli(sigma(z_p))): (B,) nats.

    It is the binary cross-entropy of the student's response z with the teacher's probabilities, less their entropy,
    which has no gradient.

    Args:
        student, teacher: z and v, logits (B, 1, R, R). A teacher's response of another size is resized bilinearly. No
            gradient reaches the teacher's.
    """
    check_samples(student, teacher)
    target = resized(teacher.detach(), student.shape[2:])
    probability = target.sigmoid()
    divergence = probability * (F.logsigmoid(target) - F.logsigmoid(student))
    divergence = divergence + (1 - probability) * (F.logsigmoid(-target) - F.logsigmoid(-student))
    return divergence.flatten(1).mean(1)


@full_precision
def pair_distance(student: Tensor, teacher: Tensor, positions: int = MOST_POSITIONS) -> Tensor:
    """1 / M^2 ||G_S - G_T||_F^2, G = F^T F the cosines between all M positions of a map: (B,), from 0 to 4.

    F (C, M) are the channels at each position, scaled to length 1, after max-pooling to at most ``positions`` a side.

    Args:
        student, teacher: maps (B, C, H, W); the channels may differ. A teacher's map of another size is resized
            bilinearly. No gradient reaches the teacher's.
        positions: the largest side that is not pooled.
    """
    check_samples(student, teacher)
    target = resized(teacher.detach(), student.shape[2:])
    cosines = []
    for maps in (student, target):
        side = tuple(min(extent, positions) for extent in maps.shape[2:])
        features = _positions(maps if side == maps.shape[2:] else F.adaptive_max_pool2d(maps, side))
        cosines.append(features @ features.mT)
    return (cosines[0] - cosines[1]).square().mean((1, 2))


def _positions(maps: Tensor) -> Tensor:
    """The channels at each position, scaled to length 1: (B, C, H, W) to (B, H W, C)."""
    return unit(maps.flatten(2).mT)
