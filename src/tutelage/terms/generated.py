"""Batches of generated images for discriminators."""

from __future__ import annotations

import torch

from tutelage.data.batch import UNLABELLED, Batch
from tutelage.models.generator import Generator
from tutelage.models.outputs import Outputs
from tutelage.terms.term import View


class GeneratedImages(View):
    """New images of a generator in training; no gradient reaches the generator.

    Each view draws its own latents. The generator stays in train mode, and these images update the running statistics
    of its batch normalisation, but not those of the network that judges them.

    Args:
        generator: the generator.
        of: a view; there are as many images as its batch has samples, by default as many as the current batch has.
    """

    updates_statistics = False

    def __init__(self, generator: Generator, of: View | None = None) -> None:
        self.generator, self.of = generator, of
        if of is not None:
            self.roles, self.teacher_roles = of.roles, of.teacher_roles

    def __call__(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> Batch:
        """The images, without labels."""
        if self.of is not None:
            batch = self.of(batch, student, teacher)
        with torch.no_grad():
            images = self.generator.tap(batch.inputs, ("image",))["image"]
        return Batch(images, torch.full_like(batch.index, UNLABELLED), batch.index, None)
