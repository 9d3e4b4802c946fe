"""A trained network, or several, that teach and do not learn."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from tutelage.data.batch import Batch
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.sources.source import Cohort, Unchanging


class Frozen(Unchanging):
    """Frozen teachers: in eval mode and without gradients whatever anyone calls.

    Several are averaged in probability space; each one's own outputs are the ensemble's ``members``. Being a source
    sets ``requires_grad`` to False on their parameters. Neither parameters nor buffers ever change.

    Args:
        teachers: networks from raw pixels to logits.
    """

    def __init__(self, *teachers: Tapped) -> None:
        if not teachers:
            raise ValueError("Frozen needs at least one teacher")
        self.teachers = teachers
        for teacher in teachers:
            teacher.requires_grad_(False)
        self._modules: list[nn.Module] = [module for teacher in teachers for module in teacher.modules()]

    def __call__(self, batch: Batch, roles: Collection[str], cohort: Cohort) -> Outputs:
        """The teachers' outputs for this batch."""
        for module in self._modules:  # somebody may have called train() on the teacher since the last batch
            if module.training:
                module.training = False
        with torch.no_grad():
            return Outputs.ensemble(tuple(teacher.tap(batch.inputs, roles) for teacher in self.teachers))

    def to(self, device: torch.device) -> Frozen:
        """Move the teachers."""
        for teacher in self.teachers:
            teacher.to(device)
        return self
