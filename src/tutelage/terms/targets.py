"""Checks and forms of the targets of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from tutelage.data.batch import UNLABELLED, hard_labels
from tutelage.errors import TutelageError
from tutelage.models.outputs import class_axis, classes_last

IGNORED = -100
"""torch's label of tokens and pixels that do not count."""


def labelled(targets: Tensor, ignore_index: int = IGNORED) -> Tensor:
    """Which samples have a label, (B,) bool. Targets are as in ``check_targets``, or ``ignore_index``."""
    if targets.is_floating_point():
        return (targets != 0).any(1)
    return (targets != UNLABELLED) & (targets != ignore_index)


def check_targets(targets: Tensor, classes: int | None = None) -> None:
    """Check the targets of a batch.

    The range of class numbers is checked on the CPU only, since reading it from another device would wait for it.

    Args:
        targets: (B,) int64 class numbers, ``-1`` for no label; or (B, C) soft labels.
        classes: C, if the loss knows it.

    Raises:
        TutelageError: another shape or type, or a class number that does not exist.
    """
    shape = tuple(targets.shape)
    if targets.is_floating_point():
        if targets.ndim != 2 or classes not in (None, shape[1]):
            columns = "C" if classes is None else classes
            raise TutelageError(f"soft labels must be (B, {columns}), one row per sample, got shape {shape}")
        return
    if targets.ndim != 1 or targets.dtype != torch.int64:
        raise TutelageError(
            f"labels must be (B,) int64 class numbers, got shape {shape} of {targets.dtype}; "
            "soft labels (B, C) must be floating-point"
        )
    if targets.device.type == "cpu" and len(targets):
        low, high = (int(value) for value in targets.aminmax())
        if low < UNLABELLED or (classes is not None and high >= classes):
            label, last = low if low < UNLABELLED else high, "" if classes is None else f" to {classes - 1}"
            raise TutelageError(
                f"label {label} does not exist: classes are numbered from 0{last}, and {UNLABELLED} stands for no label"
            )


def checked_labels(targets: Tensor, classes: int | None = None) -> Tensor:
    """(B,) int64 class numbers, ``-1`` for no label; the largest class of soft labels. Checked by ``check_targets``."""
    check_targets(targets, classes)
    return hard_labels(targets)


def flat_targets(targets: Tensor, logits: Tensor, axis: int | None = None) -> Tensor:
    """The targets of all tokens of (B, T, C) or pixels of (B, C, H, W): (N,) class numbers or (N, C) soft labels.

    Args:
        targets: (B, T) or (B, H, W) int64, or soft labels of the shape of the logits.
        logits: with more than two axes.
        axis: the class axis, as in ``class_axis``.

    Raises:
        TutelageError: the targets have another shape.
    """
    if targets.is_floating_point() and targets.shape == logits.shape:
        return classes_last(targets, axis).flatten(0, -2)
    shape = list(logits.shape)
    del shape[class_axis(logits, axis)]
    if targets.shape != torch.Size(shape):
        advice = "" if logits.ndim > 3 or axis is not None else "; if the classes are its second axis, pass axis=1"
        raise TutelageError(
            f"the labels of logits {tuple(logits.shape)} must be {tuple(shape)} int64 class numbers, one for each "
            f"position, {UNLABELLED} or {IGNORED} where it is unknown, got shape {tuple(targets.shape)}{advice}"
        )
    return targets.flatten()
