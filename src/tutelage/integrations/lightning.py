"""Distillation in Lightning: a ``LightningModule`` around a ``Distiller``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import lightning
from torch import Tensor, nn
from torch.optim import Optimizer

from tutelage.training.distiller import TOTAL, Distiller


class DistillationModule(lightning.LightningModule):  # type: ignore[misc]
    """Trains the student of a ``Distiller`` on batches ``(x, y)``, or ``x`` if no term reads labels.

    It logs each loss and their sum by name, with the prefix ``val_`` in validation. The weights of terms that are
    functions of progress get the share of the trainer's steps. A moving average of the student as the teacher is
    updated after each step. Lightning's checkpoints contain the student and the trained parts of terms, but not the
    teacher. Override ``configure_optimizers`` for a learning rate schedule, as in every ``LightningModule``.

    Args:
        distiller: built (``distiller.build(x)``) if terms have trained parts.
        optimizer: maps the parameters to an optimizer: ``lambda parameters: torch.optim.AdamW(parameters, 1e-3)``.

    Attributes:
        distiller: the module above; the student alone is ``distiller.student.module``.
    """

    def __init__(self, distiller: Distiller, optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]) -> None:
        super().__init__()
        self.distiller, self._optimizer = distiller, optimizer
        self._steps, self._progress = 0, 0.0

    def forward(self, x: Any) -> Tensor:
        """The student's logits."""
        logits: Tensor = self.distiller.student(x)
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The sum of the losses, ()."""
        steps = self.trainer.estimated_stepping_batches
        self._progress = min(1.0, self.trainer.global_step / steps)
        losses = self._losses(batch)
        self.log_dict(losses)
        return losses[TOTAL]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the losses."""
        self.log_dict({f"val_{name}": loss for name, loss in self._losses(batch).items()})

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Update a moving average of the student after each step of the optimizer."""
        steps = self.trainer.global_step
        if self.distiller.source is not None and steps > self._steps:
            self.distiller.source.after_step()
        self._steps = steps

    def on_train_start(self) -> None:
        """Remember the number of steps before the training."""
        self._steps = self.trainer.global_step

    def configure_optimizers(self) -> Optimizer:
        """The optimizer of the student and of the trained parts of terms."""
        return self._optimizer(self.distiller.parameters())

    def _losses(self, batch: Any) -> dict[str, Tensor]:
        x, y = batch if isinstance(batch, tuple | list) else (batch, None)
        losses: dict[str, Tensor] = self.distiller(x, y, progress=self._progress)
        return losses
