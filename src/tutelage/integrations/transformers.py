"""Distillation in the Hugging Face ``Trainer``: one whose model is a ``Distiller``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

from tutelage.errors import TutelageError
from tutelage.training.distiller import TOTAL, Distiller


class DistillationTrainer(Trainer):  # type: ignore[misc]
    """A ``Trainer`` of the student of a ``Distiller``.

    The model's inputs are the columns of the data except ``labels``; both networks get them by keyword. Beside the
    loss, ``log`` reports the mean of each term since the last report. The weights of terms that are functions of
    progress get the share of the steps. A moving average of the student as the teacher is updated after each step.
    Predictions are the student's logits. ``save_model`` saves the student and the trained parts of terms, without the
    teacher; for the student alone call ``save_pretrained`` of the network that you passed.

    Args:
        model: the distiller, built (``distiller.build(inputs)``) if terms have trained parts.
        args: with ``remove_unused_columns=False``, since the ``Trainer`` cannot see which columns the networks read.
        options: as for every ``Trainer``: ``train_dataset``, ``eval_dataset``, ``data_collator``, ...

    Raises:
        TutelageError: ``model`` is no distiller, or ``args`` remove columns.
    """

    def __init__(self, model: Distiller, args: TrainingArguments, **options: Any) -> None:
        if not isinstance(model, Distiller):
            raise TutelageError(
                f"DistillationTrainer trains a Distiller and was given a {type(model).__name__}; write "
                "Distiller(student, teacher, terms)"
            )
        if args.remove_unused_columns:
            raise TutelageError(
                "the Trainer would remove all columns of the data, since it cannot see what the networks read; set "
                "TrainingArguments(remove_unused_columns=False)"
            )
        super().__init__(model, args, **options)
        self.label_names = ["labels"]
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        if model.source is not None:
            self.add_callback(_AfterStep(model))

    def compute_loss(self, model: Any, inputs: Mapping[str, Any], return_outputs: bool = False, **_: Any) -> Any:
        """The sum of the losses, (), and the student's logits if requested."""
        columns = dict(inputs)
        labels = columns.pop("labels", None)
        progress = self.state.global_step / self.state.max_steps if self.state.max_steps else 0.0
        losses = model(columns, labels, progress=min(1.0, progress))
        if model.training:
            for name, loss in losses.items():
                if name != TOTAL:
                    self._sums[name] = self._sums.get(name, torch.zeros_like(loss)) + loss.detach()
            self._count += 1
        return (losses[TOTAL], {"logits": self.model.logits}) if return_outputs else losses[TOTAL]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Report the mean of each term beside the training loss."""
        if "loss" in logs and self._count:
            logs = logs | {name: float(total) / self._count for name, total in self._sums.items()}
            self._sums, self._count = {}, 0
        super().log(logs, *args, **kwargs)


class _AfterStep(TrainerCallback):  # type: ignore[misc]
    """Updates a moving average of the student after each step."""

    def __init__(self, distiller: Distiller) -> None:
        self.distiller = distiller

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.distiller.source is not None:
            self.distiller.source.after_step()
