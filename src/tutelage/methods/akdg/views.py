"""Batches of generated images, for critics to judge."""

from __future__ import annotations

import torch
from torch import Tensor

from tutelage.data.batch import UNLABELLED, Batch
from tutelage.models.generator import Generator
from tutelage.models.outputs import Outputs
from tutelage.terms.term import View


class GeneratedImages(View):
    """As many images as the batch has, newly made by a generator that is training itself; no gradient reaches it.

    Each view draws latents of its own. The generator stays in train mode, and the running statistics of its batch
    normalisation count these images too.

    Args:
        generator: whose images they are.
    """

    def __init__(self, generator: Generator) -> None:
        self.generator = generator

    def __call__(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> Batch:
        """The images, without labels."""
        with torch.no_grad():
            return _of(self.generator.tap(batch.inputs, ("image",))["image"], batch)


class TeacherImages(View):
    """The images that the learner's source makes, a frozen generator for instance."""

    teacher_roles = ("image",)

    def __call__(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> Batch:
        """The images, without labels."""
        if teacher is None:
            raise ValueError("TeacherImages needs a source that generates images")
        return _of(teacher["image"], batch)


def _of(images: Tensor, batch: Batch) -> Batch:
    return Batch(images, torch.full_like(batch.index, UNLABELLED), batch.index, None)
