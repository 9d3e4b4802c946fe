"""Comparing the classes that a network was trained for with the classes of the data."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch

from tutelage.data.data import Data
from tutelage.data.loader import evaluation_batches
from tutelage.errors import NETWORK_ERRORS, TutelageError, TutelageWarning, one_line
from tutelage.models.modes import eval_mode
from tutelage.models.tapped import Tapped


def with_classes(data: Data, model: Tapped | None, classes: Sequence[str]) -> Data:
    """Give unlabelled data without class names the classes of its teacher.

    Args:
        data: returned unchanged if it has classes.
        model: the teacher, or ``None``.
        classes: the class names that the teacher's file records; without them classes are named by output number.

    Raises:
        TutelageError: there is no teacher, or its outputs are not logits (B, C).
    """
    if data.classes:
        return data
    if model is None:
        raise TutelageError(
            f"no sample of {data.name} has a label, and there is no teacher to learn from instead; name one with "
            "--teacher (teacher=...), or label some samples"
        )
    return data.with_class_names(classes or [str(number) for number in range(_outputs(model, data))])


def _outputs(model: Tapped, data: Data) -> int:
    """The number of outputs of a network."""
    batch = next(
        evaluation_batches(
            data.train.subset(torch.arange(min(2, len(data.train)))), device=model.mean.device, workers=0
        )
    )
    name = type(model.module).__name__
    try:
        with eval_mode(model), torch.no_grad():
            outputs: object = model(batch.inputs)
    except NETWORK_ERRORS as error:
        raise TutelageError(
            f"{name} cannot take {data.modality.noun} of shape {data.input_shape}: {one_line(error)}; use a teacher "
            f"for such {data.modality.noun}"
        ) from error
    if not isinstance(outputs, torch.Tensor) or outputs.ndim != 2:
        raise TutelageError(
            f"no sample of {data.name} has a label, and the outputs of the teacher {name} are not logits (B, C), "
            "which would give the number of classes; name the classes: classes=... of Data, or a test split in folders "
            "of classes"
        )
    return outputs.shape[1]


def check_classes(text: str, classes: Sequence[str], data: Data) -> None:
    """Check that a network was trained for as many classes as the data has.

    Raises:
        TutelageError: the numbers differ.
    """
    if len(classes) not in (0, data.num_classes):
        raise TutelageError(
            f"{text} was trained for {len(classes)} classes and {data.name} has {data.num_classes}; "
            "use a network for the same classes"
        )
    warn_of_class_names(text, classes, data)


def warn_of_class_names(text: str, classes: Sequence[str], data: Data) -> None:
    """Warn if a network has as many classes as the data but another name for one of them."""
    if len(classes) != data.num_classes:
        return
    differing = [pair for pair in zip(classes, data.classes, strict=True) if pair[0] != pair[1]]
    if differing:
        warnings.warn(
            f"{text} calls its classes differently ({differing[0][0]!r} where {data.name} has {differing[0][1]!r}); "
            "check that they are in the same order",
            TutelageWarning,
            stacklevel=3,
        )
