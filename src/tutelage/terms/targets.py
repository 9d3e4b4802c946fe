"""The targets of a batch as losses take them."""

from __future__ import annotations

import torch
from torch import Tensor

from tutelage.data.batch import UNLABELLED
from tutelage.errors import TutelageError


def check_targets(targets: Tensor, classes: int | None = None) -> None:
    """Check the targets of a batch.

    The range of class numbers is checked on the processor alone: elsewhere it would be a wait for the device.

    Args:
        targets: (B,) int64 class numbers, ``-1`` for no label; or (B, C) soft labels.
        classes: C, where the loss knows it.

    Raises:
        TutelageError: another shape or type, or a class number that does not exist.
    """
    shape = tuple(targets.shape)
    if targets.is_floating_point():
        if targets.ndim != 2 or classes not in (None, shape[1]):
            columns = "C" if classes is None else classes
            raise TutelageError(f"soft labels must be (B, {columns}), a row a sample, got shape {shape}")
        return
    if targets.ndim != 1 or targets.dtype != torch.int64:
        raise TutelageError(
            f"labels must be (B,) int64 class numbers, got shape {shape} of {targets.dtype}; "
            "give soft labels (B, C) as floating point numbers"
        )
    if targets.device.type == "cpu" and len(targets):
        low, high = (int(value) for value in targets.aminmax())
        if low < UNLABELLED or (classes is not None and high >= classes):
            wrong, last = low if low < UNLABELLED else high, "" if classes is None else f" to {classes - 1}"
            raise TutelageError(
                f"label {wrong} does not exist: classes are numbered from 0{last}, and {UNLABELLED} stands for no label"
            )


def hard_labels(targets: Tensor, classes: int | None = None) -> Tensor:
    """(B,) int64 class numbers, ``-1`` for no label; of soft labels the largest. Arguments as of ``check_targets``."""
    check_targets(targets, classes)
    return targets.argmax(1) if targets.is_floating_point() else targets
