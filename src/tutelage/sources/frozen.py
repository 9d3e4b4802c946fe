"""Trained networks as frozen teachers."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.models.inputs import as_batch
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped, as_tapped
from tutelage.sources.cache import TeacherCache
from tutelage.sources.source import NO_COHORT, Cohort, Source


class Frozen(Source):
    """One frozen teacher, or several whose probabilities are averaged.

    Teachers always run in eval mode and without gradients; neither parameters nor buffers change. The constructor sets
    ``requires_grad`` to False on their parameters. The outputs of each teacher are the ensemble's ``members``.

    Args:
        teachers: networks from raw pixels to logits. A bare ``nn.Module`` gets its inputs without normalization.
        cache: caches their outputs for the training split, so that each is computed once.

    Raises:
        TutelageError: a teacher is not a network.
    """

    def __init__(self, *teachers: nn.Module, cache: TeacherCache | None = None) -> None:
        if not teachers:
            raise TutelageError("Frozen needs at least one teacher, got none; give it a network")
        self.models, self.cache = tuple(as_tapped("Frozen", teacher) for teacher in teachers), cache
        for teacher in self.models:
            teacher.eval().requires_grad_(False)

    def __call__(self, batch: Batch | Any, roles: Collection[str] = ("logits",), cohort: Cohort = NO_COHORT) -> Outputs:
        """Return the teachers' outputs for a batch, or for plain inputs as ``Tapped.tap`` takes them."""
        batch = as_batch(batch)
        for teacher in self.models:
            for module in teacher.modules():
                if module.training:  # its train() was called since the last batch
                    module.training = False
        with torch.no_grad():
            return Outputs.ensemble(tuple(self._run(teacher, batch, roles) for teacher in self.models))

    def _run(self, teacher: Tapped, batch: Batch, roles: Collection[str]) -> Outputs:
        if self.cache is None:
            return teacher.tap(batch.inputs, roles)
        return self.cache(teacher, batch, roles)
