"""A trained network, or several, that teach and do not learn."""

from __future__ import annotations

from collections.abc import Collection

import torch

from tutelage.data.batch import Batch
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped, check_tapped
from tutelage.sources.source import Ask, Cohort, Source, ask
from tutelage.sources.store import AnswerStore


class Frozen(Source):
    """Frozen teachers: in eval mode and without gradients whatever anyone calls.

    Several are averaged in probability space; each one's own outputs are the ensemble's ``members``. Being a source
    sets ``requires_grad`` to False on their parameters. Neither parameters nor buffers ever change.

    Args:
        teachers: networks from raw pixels to logits.
        store: where their answers to the training part are kept, so that each is computed once.
        ask: how one of them is asked; runs side by side ask together.

    Raises:
        TutelageError: a teacher is a bare ``nn.Module``.
    """

    def __init__(self, *teachers: Tapped, store: AnswerStore | None = None, ask: Ask = ask) -> None:
        if not teachers:
            raise ValueError("Frozen needs at least one teacher")
        check_tapped("Frozen", *teachers)
        self.models, self.store, self.ask = teachers, store, ask
        for teacher in teachers:
            teacher.eval().requires_grad_(False)

    def __call__(self, batch: Batch, roles: Collection[str], cohort: Cohort) -> Outputs:
        """The teachers' outputs for this batch."""
        for teacher in self.models:
            for module in teacher.modules():
                if module.training:  # somebody has called train() on it since the last batch
                    module.training = False
        with torch.no_grad():
            return Outputs.ensemble(tuple(self._answer(teacher, batch, roles) for teacher in self.models))

    def _answer(self, teacher: Tapped, batch: Batch, roles: Collection[str]) -> Outputs:
        if self.store is None:
            return self.ask(teacher, batch, roles)
        return self.store(teacher, batch, roles, self.ask)
