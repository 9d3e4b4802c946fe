"""Inference of modality and targets from the dtypes and shapes of arrays in a file."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from tutelage.data.arrays import Array
from tutelage.data.modality import Modality, Pixels, Vectors
from tutelage.data.targets import Classes, Grades, Masks, MultiLabel, Quantities, Strings, Targets
from tutelage.errors import TutelageError, unknown

BY_TASK: Mapping[str, Targets] = MappingProxyType(
    {kind.task: kind for kind in (Classes(), Grades(), Masks(), MultiLabel(), Quantities(), Strings())}
)
"""Kinds of targets by the name of their task, the possible values of the entry ``targets`` of a file."""


def infer_modality(inputs: Array, what: str) -> Modality:
    """The modality: (N, D) floats are vectors, arrays with more axes are images.

    Raises:
        TutelageError: two axes of integers, which are ambiguous.
    """
    if inputs.ndim != 2:
        return Pixels()
    if inputs.dtype.kind != "f":
        raise TutelageError(
            f"{what} is {inputs.dtype} of shape {inputs.shape}; vectors are (N, D) floats, images (N, H, W) or "
            "(N, H, W, C)"
        )
    return Vectors()


def infer_targets(labels: Array, what: str) -> Targets:
    """The kind of targets.

    Integers (N,) are classes, (N, H, W) masks, and (N, C) of 0, 1 and -1 (unknown) several labels a sample. Floats
    (N,) are quantities, NaN if unknown, and so are (N, K) that leave [0, 1]; (N, C) are distributions over classes if
    most rows sum to 1, and several labels a sample if they are 0 and 1 with more than one 1 in a row.

    Raises:
        TutelageError: they could be of two kinds; the message says how to name the kind.
    """
    kind, several = labels.dtype.kind, labels.ndim == 2 and labels.shape[1] > 1
    if kind == "f" and labels.ndim in (1, 2):
        return _several_floats(labels, what) if several else _one_float(labels, what)
    if kind in "iub" and labels.ndim == 3:
        return Masks()
    if kind in "iub" and several:
        return _several_integers(labels, what)
    return Classes()  # or an unusable array, which ``Classes.store`` refuses


def _one_float(labels: Array, what: str) -> Targets:
    finite = labels[~np.isnan(labels)]
    if (finite == np.rint(finite)).all():
        raise _ambiguous(labels, what, "whole numbers as floats: save classes as integers", "regression")
    return Quantities()


def _several_floats(labels: Array, what: str) -> Targets:
    with np.errstate(all="ignore"):
        sums = labels.sum(1, dtype=np.float64)
        is_distribution = np.abs(sums - 1) <= 1e-3
    if ((labels == 0) | (labels == 1)).all() and (sums > 1).any():
        return MultiLabel()
    if len(labels) == 0 or (is_distribution | (labels == 0).all(1)).mean() > 0.5:
        return Classes()
    if (labels == np.rint(labels)).all() or ((labels >= 0) & (labels <= 1)).all():
        raise _ambiguous(labels, what, "no distributions, whose rows sum to 1, and no plain quantities", "regression")
    return Quantities()


def _several_integers(labels: Array, what: str) -> Targets:
    values = labels.astype(np.int8) if labels.dtype == np.bool_ else labels
    if not ((values == 0) | (values == 1) | (values == -1)).all():
        raise _ambiguous(labels, what, "several integers a sample", "strings", "regression")
    if len(values) and (values.sum(1) == 1).all() and (values >= 0).all():
        raise _ambiguous(labels, what, "one-hot: save the classes as integers (.argmax(1))", "multi_label")
    return MultiLabel()


def targets_named(name: Array, what: str) -> Targets:
    """The kind of targets that the entry ``targets`` of a file names by a task.

    Raises:
        TutelageError: it is not a text, or not the name of a kind.
    """
    if name.ndim != 0 or name.dtype.kind not in "US":
        raise TutelageError(f"{what} is {name.dtype} of shape {name.shape}; it is one text: {', '.join(BY_TASK)}")
    value = name.item()
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    if text not in BY_TASK:
        raise unknown("kind of targets", text, BY_TASK)
    return BY_TASK[text]


def _ambiguous(labels: Array, what: str, why: str, *tasks: str) -> TutelageError:
    remedy = " or ".join(f"targets={task!r}" for task in tasks)
    return TutelageError(
        f"{what} is {labels.dtype} of shape {labels.shape}, {why}, integers (N,); if they are for another task add "
        f"{remedy} to the file"
    )
