"""Losses of saliency maps: with the map of people's fixations, and with a teacher's map."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs
from tutelage.terms.pixels import resized
from tutelage.terms.precision import full_precision
from tutelage.terms.shapes import check_samples
from tutelage.terms.term import Term


@full_precision
def map_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """-mean over pixels of y log s(z) + (1 - y) log(1 - s(z)), s the logistic function, per image.

    Args:
        logits: z, (B, 1, H, W).
        target: y in [0, 1], (B, H, W); the map of an image that has none is NaN.

    Returns:
        (B,) nats per pixel; 0 for an image without a map.

    Raises:
        TutelageError: the shapes differ.
    """
    z = map_logits(logits)
    if z.shape != target.shape:
        raise TutelageError(
            f"maps of shapes {tuple(z.shape)} and {tuple(target.shape)} cannot be compared; they need the same images "
            "and pixels"
        )
    unknown = target.isnan().flatten(1).all(1)
    known_target = target.detach().masked_fill(unknown[:, None, None], 0.0)
    losses = F.binary_cross_entropy_with_logits(z, known_target, reduction="none").mean((1, 2))
    return losses.masked_fill(unknown, 0.0)


@full_precision
def map_soft_targets(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Hinton's loss for maps: T^2 times the mean over pixels of KL(s(v / T) || s(z / T)), per image.

    Each pixel is a distribution over two outcomes, looked at or not; z are the student's logits, v the teacher's, s is
    the logistic function. It differs from the cross-entropy with the teacher's map by a number that the student does
    not change, so that it is 0 if the two agree.

    Args:
        student_logits: (B, 1, H, W).
        teacher_logits: (B, 1, h, w), scaled bilinearly if the size differs. No gradient reaches them.
        temperature: T > 0.

    Returns:
        (B,) nats per pixel, times T^2.
    """
    return _soft_targets(student_logits, (teacher_logits,), temperature)


def map_logits(logits: Tensor) -> Tensor:
    """Logits (B, 1, H, W) as (B, H, W).

    Raises:
        TutelageError: another shape.
    """
    if logits.ndim != 4 or logits.shape[1] != 1:
        raise TutelageError(
            f"a loss of saliency maps needs logits (B, 1, H, W), got {tuple(logits.shape)}; give a network with one map"
        )
    return logits[:, 0]


def like(maps: Tensor, other: Tensor) -> Tensor:
    """Maps (B, h, w) at the resolution of other maps (B, H, W), interpolated bilinearly if it differs.

    Raises:
        TutelageError: the numbers of images differ.
    """
    check_samples(other, maps)
    return resized(maps[:, None], other.shape[1:])[:, 0]


class _MapTerm(Term):
    """A term on the maps of whole images, whose pixels are not samples of their own."""

    def mean(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """The mean over the images that count, ()."""
        value, mask = self(student, teacher, batch), self.mask(batch)
        return value.mean() if mask is None else value.where(mask, 0.0).sum() / mask.sum().clamp(min=1)


class MapCrossEntropy(_MapTerm):
    """The label loss of saliency: ``map_cross_entropy`` with the density of the labels of ``Maps``, per image (B,)."""

    reads_teacher = False

    def mask(self, batch: Batch | None) -> Tensor | None:
        """The images with a map."""
        return None if batch is None else ~batch.targets[:, 0, 0, 0].isnan()

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,) nats per pixel."""
        targets = self.required(batch, "the batch, for its targets").targets
        return map_cross_entropy(student["logits"], targets[:, 0])


class MapSoftTargets(_MapTerm):
    """``map_soft_targets`` of the student's and the teacher's maps, per image (B,).

    Several teachers are averaged as softened probabilities.

    Args:
        temperature: T > 0.
    """

    reads_labels = False

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        if not 0 < temperature < math.inf:
            raise TutelageError(f"the temperature must be a finite number above 0, got {temperature}")
        self.temperature = temperature

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,) nats per pixel, times T^2."""
        cohort = self.required(teacher)
        members = [member["logits"] for member in cohort.members or (cohort,)]
        return _soft_targets(student["logits"], members, self.temperature)


def _soft_targets(student: Tensor, teachers: tuple[Tensor, ...] | list[Tensor], temperature: float) -> Tensor:
    z = map_logits(student) / temperature
    scaled = torch.stack([like(map_logits(v.detach()), z) for v in teachers]) / temperature
    looked, ignored = (F.logsigmoid(sign * scaled).logsumexp(0) - math.log(len(scaled)) for sign in (1, -1))
    divergence = looked.exp() * (looked - F.logsigmoid(z)) + ignored.exp() * (ignored - F.logsigmoid(-z))
    return temperature**2 * divergence.mean((1, 2))
