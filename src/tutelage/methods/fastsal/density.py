"""Losses between the student's density over pixels and the teacher's, for images without labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.models.outputs import Outputs, at_least_float32
from tutelage.terms.maps import map_logits
from tutelage.terms.precision import full_precision
from tutelage.terms.shapes import check_samples
from tutelage.terms.term import Term, Weighted

TeacherOutput = Literal["map", "log_density"]


@full_precision
def teacher_density(logits: Tensor, size: tuple[int, int], output: TeacherOutput) -> Tensor:
    """The teacher's density g over pixels, of sum 1.

    Args:
        logits: (B, 1, h, w).
        size: (H, W) of the density; a teacher's map of another size is scaled by a bicubic filter after the
            exponential, as in the official code, and then set to 0 where that filter overshoots below 0.
        output: what the logits v are: of a ``"map"``, g is proportional to s(v), s the logistic function; of a
            ``"log_density"``, as of DeepGaze, to exp(v).

    Returns:
        (B, H W), without a gradient.
    """
    v = map_logits(logits.detach())
    log_density = F.logsigmoid(v) if output == "map" else v
    density = (log_density - log_density.amax((1, 2), keepdim=True)).exp()
    if density.shape[1:] != size:
        density = F.interpolate(density[:, None], size=size, mode="bicubic", align_corners=False)[:, 0].clamp_min(0)
    flat = density.flatten(1)
    return flat / flat.sum(1, keepdim=True)


@full_precision
def divergence(logits: Tensor, density: Tensor) -> Tensor:
    """KL: sum over pixels of g log(g / softmax(z)), per image: (B, P) and (B, P) to (B,) nats."""
    log_density = density.clamp_min(torch.finfo(density.dtype).tiny).log()
    return (density * (log_density - logits.log_softmax(1))).sum(1)


@full_precision
def scaled_cross_entropy(logits: Tensor, density: Tensor) -> Tensor:
    """BCE: mean over pixels of the cross-entropy of s(z) with (g - min g) / (max g - min g), per image.

    (B, P) and (B, P) to (B,) nats per pixel; a constant density becomes 0.
    """
    low, high = density.amin(1, keepdim=True), density.amax(1, keepdim=True)
    target = (density - low) / (high - low).clamp_min(torch.finfo(density.dtype).tiny)
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1)


@full_precision
def angle(logits: Tensor, density: Tensor) -> Tensor:
    """1 - cosine of softmax(z) and g as vectors, which are not centred, per image: (B, P) and (B, P) to (B,)."""
    return 1 - F.cosine_similarity(logits.softmax(1), density, dim=1)


class DensityTerm(Term):
    """A loss between the student's logits z and the teacher's density g, per image (B,).

    Args:
        loss: ``divergence``, ``scaled_cross_entropy`` or ``angle``.
        output: what the teacher's logits are, as in ``teacher_density``.
    """

    reads_labels = False

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor], output: TeacherOutput) -> None:
        super().__init__()
        self.loss, self.output = loss, output

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,)."""
        z = map_logits(at_least_float32(student["logits"]))
        target = self.required(teacher)["logits"]
        check_samples(z, target)
        return self.loss(z.flatten(1), teacher_density(target, (z.shape[1], z.shape[2]), self.output))


def density_terms(output: TeacherOutput) -> dict[str, Term | Weighted]:
    """0.5 KL + 0.3 BCE + 0.2 (1 - cosine), the weights of the official code."""
    return {
        "kl": 0.5 * DensityTerm(divergence, output),
        "bce": 0.3 * DensityTerm(scaled_cross_entropy, output),
        "angle": 0.2 * DensityTerm(angle, output),
    }
