"""The classes that networks were trained for, and those of data."""

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
    """The data with the classes of a trained network, if no sample has a label and nobody has named them.

    Args:
        data: returned as it is where it has classes.
        model: the teacher; ``None`` where there is none.
        classes: those that the teacher's file records; without a record they are numbered, one an output.

    Raises:
        TutelageError: there is no teacher, or its output has no second axis to number.
    """
    if data.classes:
        return data
    if model is None:
        raise TutelageError(
            f"no sample of {data.name} has a label, and there is no teacher to learn from instead; give one with "
            "--teacher (teacher=...), or label some samples"
        )
    return data.with_class_names(classes or [str(number) for number in range(_outputs(model, data))])


def _outputs(model: Tapped, data: Data) -> int:
    """How many outputs a network has."""
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
            f"{name} cannot take {data.modality.noun} of shape {data.input_shape}: {one_line(error)}; give a teacher "
            f"for such {data.modality.noun}"
        ) from error
    if not isinstance(outputs, torch.Tensor) or outputs.ndim != 2:
        raise TutelageError(
            f"no sample of {data.name} has a label, and the teacher {name} gives no logits (B, C), whose number would "
            "be that of the classes; name the classes: classes=... of Data, or a test part in folders of classes"
        )
    return outputs.shape[1]


def check_classes(text: str, classes: Sequence[str], data: Data) -> None:
    """Refuse a network that was trained for another number of classes, for whoever reads its outputs as those of data.

    Raises:
        TutelageError: with both numbers.
    """
    if len(classes) not in (0, data.num_classes):
        raise TutelageError(
            f"{text} was trained for {len(classes)} classes and {data.name} has {data.num_classes}; "
            "give it a network of the same classes"
        )
    warn_of_class_names(text, classes, data)


def warn_of_class_names(text: str, classes: Sequence[str], data: Data) -> None:
    """Warn where a network has as many classes as the data, and calls one of them differently."""
    if len(classes) != data.num_classes:
        return
    differing = [pair for pair in zip(classes, data.classes, strict=True) if pair[0] != pair[1]]
    if differing:
        warnings.warn(
            f"{text} calls its classes differently ({differing[0][0]!r} where {data.name} has {differing[0][1]!r}); "
            "check that they stand in the same order",
            TutelageWarning,
            stacklevel=3,
        )
