"""Evaluate any network on any data."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tutelage.ambient import default_settings
from tutelage.data.data import Data
from tutelage.errors import unknown
from tutelage.tasks.lookup import find_task
from tutelage.tasks.task import Compute


@default_settings()
def evaluate(
    model: nn.Module,
    data: Data,
    *,
    split: str = "test",
    device: torch.device | str = "cpu",
    teacher: nn.Module | None = None,
    task: str | None = None,
) -> dict[str, Any]:
    """A network's metrics on one split of a data set, as plain JSON values.

    Args:
        model: maps raw inputs, of images (B, C, H, W) in [0, 1], to its outputs; it must be on ``device`` already.
        data: the data set.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        device: where to compute.
        teacher: another network, on the same device, to compare with.
        task: the name of the task; by default the task of the data's targets.

    Returns:
        ``samples`` and the task's ``metrics``; ``None`` for an undefined number, for example the accuracy of a class
        without samples.

    Raises:
        TutelageError: there is no such split or task, or the network does not fit the data.
    """
    if split not in data.splits:
        raise unknown("split", split, data.splits)
    selected = find_task(data.targets.task if task is None else task)
    selected.check_data(data)
    return selected.evaluate(model, data.splits[split], data, Compute(device), teacher=teacher)
