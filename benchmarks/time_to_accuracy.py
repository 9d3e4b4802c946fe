"""Minutes until a student reaches 90 % of CIFAR-10: the preset ``fast`` and the field's step schedule."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tutelage
from benchmarks.pairs import Numbers
from tutelage.data import Data, open_data

DATA = Path("runs") / "data"
RUNS = Path("runs") / "time-to-accuracy"
FAST: Mapping[str, Any] = MappingProxyType({"preset": "fast", "batch_size": 128, "epochs": 15})
STEPS: Mapping[str, Any] = MappingProxyType({"batch_size": 128, "lr": 0.1, "epochs": 40})
VIEWS = 4  # under a teacher, so that most of its outputs are read from the cache


@dataclass(frozen=True)
class Setting:
    """What is trained, on which data, and up to which accuracy.

    Attributes:
        goal: the test accuracy to reach.
        student: its name.
        data: the data set; the test split is evaluated after each epoch.
        teacher: its name.
        fields: of all runs.
    """

    goal: float
    student: str
    data: Data
    teacher: str
    fields: Mapping[str, Any] = field(default_factory=dict)


def time_to_accuracy(short: bool) -> Numbers:
    """Minutes to 90 % test accuracy on CIFAR-10, with the preset ``fast`` and with the step schedule, and of a teacher.

    The student is a ResNet-9 of a quarter of DAWNBench's width, the teacher a ResNet-56 of 93.4 %, whose outputs are
    computed within the run, cached. Under a teacher the images have four crops and flips. The time is that of the
    epochs, evaluation included, to the first one after which the test accuracy is 90 % or more; nothing is selected by
    these accuracies. A stopped run resumes from ``runs/time-to-accuracy``; remove the
    folder to measure again. Needs ``cifar10.npz`` and ``cifar10-resnet56.safetensors`` in ``runs/data``.
    """
    if short:
        with tempfile.TemporaryDirectory() as folder:
            return measure(_short(Path(folder)), Path(folder), shorter=10)
    file, weights = DATA / "cifar10.npz", DATA / "cifar10-resnet56.safetensors"
    if missing := [str(path) for path in (file, weights) if not path.exists()]:
        return {"": {"left out": f"no {' and no '.join(missing)}"}}
    data = _with_curve(open_data(f"npz:{file}"))
    return measure(Setting(0.9, "experiments.nets:small_resnet9", data, f"resnet56@{weights}"), RUNS)


def measure(setting: Setting, folder: Path, shorter: int = 1) -> Numbers:
    """The numbers of all rows, from runs in this folder; their epochs are divided by ``shorter``."""
    limited = replace(setting.data, views=setting.data.views.limited(VIEWS))
    measured: Numbers = {}
    for teacher in (False, True):
        for name, recipe in {"step schedule": STEPS, "fast": FAST}.items():
            row = f"{name}, {'ResNet-56 as teacher' if teacher else 'no teacher'}"
            out = folder / row.replace(" ", "-").replace(",", "")
            fields = {**setting.fields, **recipe, "epochs": max(1, recipe["epochs"] // shorter), "out": out}
            if teacher:
                fields |= {"teacher_cache": str(out / "teacher-outputs"), "teacher_cache_dtype": "bfloat16"}
                result = tutelage.distill(setting.teacher, setting.student, limited, **fields)
            else:
                result = tutelage.train(setting.student, setting.data, **fields)
            measured[row] = _curve(result.history, setting.goal)
    return measured


def _curve(history: Iterable[Mapping[str, Any]], goal: float) -> Numbers:
    """Minutes and epochs to the goal, and the accuracy and the minutes of the whole run."""
    seconds, reached, accuracies = 0.0, "not reached", [0.0]
    epoch = 0
    for epoch, record in enumerate(history, 1):
        seconds += record["seconds"]
        (learner,) = record["learners"].values()
        accuracies.append(learner["validation_accuracy"])
        if reached == "not reached" and accuracies[-1] >= goal:
            reached = f"{seconds / 60:.1f} minutes, {epoch} epochs"
    return {
        f"to {goal:.0%}": reached,
        "best accuracy, %": round(100 * max(accuracies), 1),
        "last accuracy, %": round(100 * accuracies[-1], 1),
        "whole run": f"{seconds / 60:.1f} minutes, {epoch} epochs",
    }


def _with_curve(data: Data) -> Data:
    """The data with its test split evaluated after each epoch."""
    return replace(data, validation=data.test)


def _short(folder: Path) -> Setting:
    """A setting of seconds: digits, with a teacher of one epoch."""
    data = _with_curve(open_data("digits"))
    fields: dict[str, Any] = {"device": "cpu", "workers": 0}
    tutelage.train("resnet14x0.5", data, epochs=1, out=folder / "teacher", **fields)
    return Setting(0.5, "resnet8x0.5", data, str(folder / "teacher"), fields)
