"""Networks and batches that tests of the training loop share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tutelage.config import Recipe
from tutelage.data import Batch, Data
from tutelage.data.loader import Batches
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.terms import Term

Net = Callable[..., Tapped]
StateOf = Callable[[nn.Module], dict[str, Tensor]]
Changed = Callable[..., set[str]]


class Probe(Term):
    """Calls a function with the outputs and the batch. Its value is the loss; None: 0 per sample, with a gradient."""

    def __init__(
        self,
        look: Callable[[Outputs, Outputs | None, Batch], Tensor | None],
        roles: tuple[str, ...] = ("logits",),
        teacher_roles: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.look, self.roles, self._teacher_roles = look, roles, teacher_roles

    @property
    def teacher_roles(self) -> tuple[str, ...]:
        return self._teacher_roles

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        assert batch is not None
        value = self.look(student, teacher, batch) if torch.is_grad_enabled() else None  # None in the dry run
        return student[self.roles[0]].flatten(1).sum(1) * 0 if value is None else value


def batches_of(data: Data, recipe: Recipe, seed: int = 0) -> list[Batch]:
    batches = Batches(data.train, batch_size=recipe.batch_size, views=data.views, seed=seed)
    return [batch for epoch in range(recipe.epochs) for batch in batches.epoch(epoch)]
