"""Losses of logit maps, pixel by pixel, of networks whose maps may be smaller than the labels."""

from __future__ import annotations

from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.models.outputs import Outputs, at_least_float32
from tutelage.terms.cross_entropy import CrossEntropy, cross_entropy
from tutelage.terms.soft_targets import SoftTargets
from tutelage.terms.targets import IGNORED


def resized(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Maps at another resolution, interpolated bilinearly between the centres of pixels (``align_corners=False``).

    Args:
        maps: (B, C, h, w), of any type.
        size: height and width of the result; maps of this size are returned as they are.

    Returns:
        (B, C, *size), float32 or float64 if interpolated.
    """
    if tuple(maps.shape[2:]) == tuple(size):
        return maps
    return F.interpolate(at_least_float32(maps), tuple(size), mode="bilinear", align_corners=False)


def at_one_resolution(student: Outputs, teacher: Outputs) -> tuple[Outputs, Outputs]:
    """Outputs whose logit maps (B, C, h, w) all have the largest height and width among them; others are enlarged."""
    logits = [outputs["logits"] for outputs in (student, *(teacher.members or (teacher,)))]
    if any(maps.ndim != 4 for maps in logits):
        return student, teacher  # the term itself says which shapes it needs
    size = max(maps.shape[2] for maps in logits), max(maps.shape[3] for maps in logits)
    return _at(student, size), _at(teacher, size)


def _at(outputs: Outputs, size: tuple[int, int]) -> Outputs:
    members = tuple(_at(member, size) for member in outputs.members)
    if members:
        return Outputs.ensemble(members) if len(members) == 1 else replace(outputs, members=members)
    return replace(outputs, logits=resized(outputs["logits"], size))


class PixelCrossEntropy(CrossEntropy):
    """``cross_entropy`` of logit maps and class maps, per image (B,): the mean over the pixels that have a class.

    Smaller or larger logit maps (B, C, h, w) are interpolated bilinearly to the size of the class maps (B, H, W) of
    integers, in which -1 is void.
    """

    def __init__(self) -> None:
        super().__init__(IGNORED)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,) nats; 0 for an image without a labelled pixel."""
        targets = self.required(batch, "the batch, for its targets").targets.long()
        return cross_entropy(resized(student["logits"], targets.shape[1:]), targets)


class PixelSoftTargets(SoftTargets):
    """``soft_targets`` of logit maps, per image (B,): the mean over all pixels, void ones included.

    The smaller of two logit maps is enlarged bilinearly to the size of the other. Several teachers are averaged as
    softened probabilities.

    Args:
        temperature: T > 0.
    """

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__(temperature)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,) nats times T^2."""
        return super().forward(*at_one_resolution(student, self.required(teacher)), batch)
