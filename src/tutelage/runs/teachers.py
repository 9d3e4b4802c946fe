"""The lines that describe each teacher before training: its normalisation and its score."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from tutelage.data import Data
from tutelage.errors import TutelageError, TutelageWarning
from tutelage.files import read_file
from tutelage.models.tapped import Tapped
from tutelage.parsing import parse_json
from tutelage.runs.classes import warn_of_class_names
from tutelage.runs.folder import RESULT
from tutelage.runs.models import DEFAULT_TASK, TrainedModel
from tutelage.tasks import Compute, Metric, Task, find_task, incompatibility


def announce_teachers(
    names: Sequence[str],
    teachers: Sequence[TrainedModel],
    task: Task,
    data: Data,
    device: torch.device | str,
    announce: Callable[[str], None] | None,
) -> None:
    """Evaluate each teacher on the student's data, and announce its size, its normalisation and its main metric.

    Args:
        names: the teachers' names, as the user typed them.
        teachers: moved to the device.
        task: provides the main metric.
        data: the student's data.
        device: where to compute.
        announce: called with one line for each teacher, which includes the score recorded by the teacher's own run.
    """
    for name, teacher in zip(names, teachers, strict=True):
        model = teacher.model.to(device)
        warn_of_class_names(name, teacher.classes, data)
        resizing = _describe_resizing(teacher, data)
        facts = [_describe_score(name, model, task, data, device), _recorded_score(teacher.folder)]
        if announce is not None:
            facts = [resizing, normalisation_text(model, teacher.normalisation, data.modality.noun), *facts]
            announce(f"teacher {name}: " + "; ".join(filter(None, facts)))


def _describe_resizing(teacher: TrainedModel, data: Data) -> str | None:
    """From which to which size a teacher resizes images, and where that comes from; ``None`` if it does not."""
    if teacher.model.size is None:
        return None
    own, given = ("{} x {}".format(*size) for size in (teacher.model.size, data.input_shape[1:]))
    return f"images resized from {given} to {own} pixels ({teacher.resizing})"


def _describe_score(text: str, model: Tapped, task: Task, data: Data, device: torch.device | str) -> str | None:
    """Describe a teacher's main metric on held-out samples, or else on training samples; warn if it is at chance level.

    The text gives the reason if the teacher's outputs cannot be evaluated. That is no error: a backbone without a
    classifier, or a network for other classes, can teach by its features, and the dry run raises an error if a term
    reads its logits. ``None`` for a task without evaluation during training, and if no sample has a label.
    """
    if not task.roles:
        return None
    if reason := incompatibility(task, model, data):
        return f"not evaluated here: {reason}"
    kind, split = ("training", data.train) if data.validation is None else ("held-out", data.validation)
    split = split.subset(torch.arange(min(2000, len(split))))
    score = task.score(model, split, data, Compute(device))
    if math.isnan(score):  # no sample has a label
        return None
    chance = task.chance_level(data)
    if chance is not None and score < chance:
        level = f"chance level for {data.num_classes} classes" if data.num_classes > 1 else "chance level"
        warnings.warn(
            f"the teacher {text} has {_value(task, score)} on {len(split)} samples of {data.name}: {level}; check its "
            "weights, its normalisation and the order of the classes",
            TutelageWarning,
            stacklevel=2,
        )
    labelled = "noisily labelled " if bool(split.corrupted.any()) else ""
    return f"{_value(task, score)} on {len(split)} {labelled}{kind} samples"


def _value(task: Task, score: float) -> str:
    """A value of the main metric with the metric's name."""
    metric = task.metrics[task.main_metric]
    if not isinstance(metric, Metric):
        return f"{metric.title} {score:.4g}"
    return f"{metric.short_title} " + (f"{score:.1%}" if metric.percent else f"{score:.4g}")


def describe_normalisation(name: str, network: TrainedModel) -> str:
    """One line: a network's normalisation, and where it comes from."""
    return f"{name}: {normalisation_text(network.model, network.normalisation)}"


def normalisation_text(model: Tapped, origin: str, noun: str = "images") -> str:
    """A network's normalisation of its inputs, and where it comes from, in words."""
    mean, std = (", ".join(f"{value:.4g}" for value in values.flatten().tolist()) for values in (model.mean, model.std))
    return f"{noun} normalized with mean {mean} and std {std} ({origin})"


def _recorded_score(folder: Path | None) -> str | None:
    """Describe the main metric on the test split in a run's result; ``None`` if it cannot be read."""
    try:
        result = parse_json(read_file(folder / RESULT)) if folder is not None else {}
        task = find_task(result.get("task", DEFAULT_TASK))
        value = _value(task, float(result["test"][task.main_metric]))
        return f"its run recorded {value} on the test split of {result['data']['name']}"
    except (OSError, ValueError, TypeError, KeyError, AttributeError, TutelageError):
        return None


def reference_teacher(task: Task, teachers: Sequence[Tapped], data: Data) -> nn.Module | None:
    """The teachers as one network, to compare a student with; ``None`` if one cannot be evaluated on this data."""
    if not teachers or any(incompatibility(task, teacher, data) for teacher in teachers):
        return None
    return task.ensemble(teachers)
