"""What is known of a teacher before its student is trained: its labels, its normalisation, its accuracy, its cost."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tutelage.config import Config, read_config
from tutelage.data import Data
from tutelage.data.conditions import parse_noise
from tutelage.data.conditions.condition import Relabelling
from tutelage.errors import NETWORK_ERRORS, TutelageError, TutelageWarning
from tutelage.evaluation import flops
from tutelage.files import read_file
from tutelage.models.tapped import Tapped
from tutelage.parsing import parse_json
from tutelage.runs.classes import warn_of_class_names
from tutelage.runs.folder import CONFIG, RESULT
from tutelage.runs.locate import run_folder
from tutelage.runs.models import DEFAULT_TASK, TrainedModel
from tutelage.tasks import Compute, Metric, Task, find_task

NEGLIGIBLE = 1e6  # operations an image, below which no cost is compared [ours]

LABELS = ("data", "noise", "imbalance", "per_class", "seed")
"""The fields that decide which samples a run is trained on, and with which labels."""


def label_differences(teacher: str, config: Config) -> str | None:
    """How a teacher's run differs from this one in its labels, where it may have seen more of them.

    The teacher's run must be on the same data. Under label noise any other condition gives other labels: another
    noise, another seed of noise that is drawn, another choice of samples. Without noise all labels are correct, and
    a student can only be denied samples: by an imbalance that its teacher does not have, or by a smaller ``per_class``
    (of one seed a larger subset contains the smaller one).

    Returns:
        A warning; ``None`` where there is no such difference or no record.
    """
    folder = run_folder(teacher)
    if folder is None:
        return None
    try:
        fields = read_config(folder / CONFIG)
        there = Config(**{name: fields[name] for name in LABELS if name in fields})
    except TutelageError:  # a damaged record is no reason to stop
        return None
    if _place(there.data) != _place(config.data):
        return None
    noisy = any(isinstance(noise, Relabelling) for noise in _noises(config))
    differing = []
    if noisy and _noises(there) != _noises(config):
        differing += ["noise"] if there.noise != config.noise else ["seed"]
    if there.imbalance != config.imbalance and (noisy or config.imbalance is not None):
        differing.append("imbalance")
    if there.per_class != config.per_class and (noisy or _sees_more(there.per_class, config.per_class)):
        differing.append("per_class")
    if there.seed != config.seed and config.per_class is not None:
        differing.append("seed")
    if not differing:
        return None
    shown = " and ".join(
        f"{name} {_said(there, name)} (here {_said(config, name)})" for name in dict.fromkeys(differing)
    )
    return (
        f"the teacher {teacher} was trained on the same data with {shown}: it may have seen labels that this "
        "student is denied; for a fair comparison train it with the student's own noise, imbalance, per_class and seed"
    )


def warn_of_label_differences(config: Config) -> None:
    """Warn of each teacher that may have seen labels which the student is denied; see ``label_differences``."""
    for teacher in config.teacher:
        if text := label_differences(teacher, config):
            warnings.warn(text, TutelageWarning, stacklevel=3)


def _noises(config: Config) -> tuple[Any, ...]:
    """The noise as values that are equal where the labels are, however it is written."""
    try:
        return parse_noise(config.noise, config.seed) if config.noise is not None else ()
    except TutelageError:  # a file that is no longer there
        return (config.noise, config.seed)


def _sees_more(there: int | None, here: int | None) -> bool:
    return here is not None and (there is None or there > here)


def _said(config: Config, name: str) -> object:
    value = getattr(config, name)
    return "none" if value is None else value


def _place(data: str) -> tuple[str, Path]:
    """A data set's name, equal for two spellings of one path."""
    scheme, _, rest = data.partition(":")
    return scheme, Path(rest).resolve()


def announce_teachers(
    names: Sequence[str],
    teachers: Sequence[TrainedModel],
    task: Task,
    data: Data,
    device: torch.device | str,
    announce: Callable[[str], None] | None,
) -> None:
    """Try each teacher on this data, and announce its normalisation and its main metric, here and as its run has it.

    Args:
        names: as the user gave them.
        teachers: moved to the device.
        task: what is asked of them.
        data: what the student is trained on.
        device: where to compute.
        announce: called with a line on each teacher.
    """
    for name, teacher in zip(names, teachers, strict=True):
        model = teacher.model.to(device)
        warn_of_class_names(name, teacher.classes, data)
        facts = [_describe_score(name, model, task, data, device), _recorded_score(teacher.folder)]
        if announce is not None:
            announce("; ".join([f"teacher {describe_normalisation(name, teacher)}", *filter(None, facts)]))


def _describe_score(text: str, model: Tapped, task: Task, data: Data, device: torch.device | str) -> str | None:
    """A teacher's main metric on held-out or else on training samples, in words; a warning at chance level.

    Why it has none, where its outputs cannot be evaluated: a backbone without a classifier or a network for other
    classes teaches by its features, and the dry run refuses it where a term reads its logits. ``None`` for a task that
    does not evaluate while it trains, and where no sample has a label.
    """
    if not task.roles:
        return None
    if reason := task.incompatibility(model, data):
        return f"not evaluated here: {reason}"
    part, split = ("training", data.train) if data.validation is None else ("held-out", data.validation)
    split = split.subset(torch.arange(min(2000, len(split))))
    score = task.score(model, split, data, Compute(device))
    if math.isnan(score):  # no sample has a label
        return None
    chance = task.chance_level(data)
    if chance is not None and score < chance:
        warnings.warn(
            f"the teacher {text} gets {score:.1%} of {len(split)} samples of {data.name} right, which is chance level "
            f"for {data.num_classes} classes; check its weights, its normalisation and the order of the classes",
            TutelageWarning,
            stacklevel=2,
        )
    labelled = "noisily labelled " if bool(split.corrupted.any()) else ""
    return f"{_value(task, score)} on {len(split)} {labelled}{part} samples"


def _value(task: Task, score: float) -> str:
    """A value of the main metric, with its name."""
    metric = task.metrics[task.main_metric]
    if not isinstance(metric, Metric):
        return f"{metric.title} {score:.4g}"
    return f"{metric.short_title} " + (f"{score:.1%}" if metric.percent else f"{score:.4g}")


def describe_normalisation(name: str, opened: TrainedModel) -> str:
    """What a network's images are normalised with, and where that comes from, on a line."""
    mean, std = (
        ", ".join(f"{value:.4g}" for value in values.flatten().tolist())
        for values in (opened.model.mean, opened.model.std)
    )
    return f"{name}: images normalized with mean {mean} and std {std} ({opened.normalisation})"


def _recorded_score(folder: Path | None) -> str | None:
    """The main metric on the test part in a run's result, in words; ``None`` where there is none to read."""
    try:
        result = parse_json(read_file(folder / RESULT)) if folder is not None else {}
        task = find_task(result.get("task", DEFAULT_TASK))
        value = _value(task, float(result["test"][task.main_metric]))
        return f"its run recorded {value} on the test part of {result['data']['name']}"
    except (OSError, ValueError, TypeError, KeyError, AttributeError, TutelageError):
        return None


def reference_teacher(task: Task, teachers: Sequence[Tapped], data: Data) -> nn.Module | None:
    """What a student is compared with: its teachers as one; ``None`` where one cannot be evaluated on this data."""
    if not teachers or any(task.incompatibility(teacher, data) for teacher in teachers):
        return None
    return task.ensemble(teachers)


def warn_if_costlier(
    make: Callable[[], Tapped], teachers: Sequence[Tapped], task: Task, data: Data, student: str
) -> Callable[[], Tapped]:
    """The same maker of students, which warns once if its student costs more operations than every teacher.

    Students of fewer than a million operations an image are not compared: nothing depends on what they cost.

    Args:
        make: makes a student.
        teachers: what it learns from; without one nothing is compared.
        task: what is asked of them.
        data: whose inputs are counted for.
        student: the student's name.
    """
    warned = not teachers

    def make_and_compare() -> Tapped:
        nonlocal warned
        model = make()
        if not warned:
            warned = True
            _warn_if_dearer(student, model, teachers, task, data)
        return model

    return make_and_compare


def _warn_if_dearer(name: str, student: Tapped, teachers: Sequence[Tapped], task: Task, data: Data) -> None:
    try:
        costs = [flops(model, task.example(model, data)) for model in (student, *teachers)]
    except (*NETWORK_ERRORS, TutelageError):
        return  # generators, and networks whose faults the dry run reports
    if costs[0] > max(NEGLIGIBLE, *costs[1:]):
        ours, theirs = (f"{cost / 1e6:,.1f}" for cost in (costs[0], max(costs[1:])))
        warnings.warn(
            f"the student {name} costs {ours} MFLOPs an image and its teacher {theirs}: choose a smaller student if it "
            "is to be cheaper, for instance mobilenetv2x0.5 or resnet8x0.5",
            TutelageWarning,
            stacklevel=2,
        )
