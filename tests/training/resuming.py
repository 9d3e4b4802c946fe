"""Runs of several methods that can be stopped and started again, and their results."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tutelage.methods import find, method
from tutelage.models.tapped import Tapped
from tutelage.sources import EMA, Frozen
from tutelage.terms import CrossEntropy, Hint, SoftTargets
from tutelage.training import Learner, ParameterOptions, Run
from tutelage.training.checkpoint import Checkpoints, read
from tutelage.training.learner import ForwardPass

Net = Callable[..., Tapped]
EPOCHS = 4


class StoppedError(Exception):
    """The process was killed."""


def random_weights(forward_pass: ForwardPass, progress: float) -> Tensor:
    """Sample weights from all three global random generators, whose state a resumed run must restore."""
    return torch.rand(len(forward_pass.batch)) + float(np.random.rand()) + random.random()


@method(paper="none", family="test")
def ema_and_dropout(run: Run) -> Tapped:
    """An EMA teacher, dropout and random sample weights."""
    student = run.student()
    terms = {"ce": CrossEntropy(), "kd": (lambda progress: progress) * SoftTargets()}
    run.fit(Learner(student, EMA(student, 0.9), terms, sample_weight=random_weights))
    return student


@method(paper="none", family="test")
def two_fits(run: Run) -> Tapped:
    """Two fits with different optimizers, and random numbers drawn between them."""
    student = run.student()
    run.fit(
        Learner(student, None, {"ce": CrossEntropy()}, sample_weight=random_weights),
        epochs=2,
        optimizer="AdamW",
        lr=0.01,
    )
    weight = torch.rand(()).item() + float(np.random.rand()) + random.random()
    run.fit(Learner(student, None, {"ce": weight * CrossEntropy()}), epochs=2)
    return student


@method(paper="none", family="test")
def with_regressor(run: Run) -> Tapped:
    """A regressor that is trained with the student."""
    student = run.student()
    terms = {"ce": CrossEntropy(), "hint": Hint("stage1", "stage1", "mean")}
    run.fit(Learner(student, Frozen(run.teacher()), terms))
    return student


@method(paper="none", family="test")
def with_options(run: Run) -> Tapped:
    """Other learning rates and weight decays for some parameters."""
    student = run.student()
    options = {"conv1.weight": ParameterOptions(lr=0.1), "fc.bias": ParameterOptions(weight_decay=0.0)}
    run.fit(Learner(student, None, {"ce": CrossEntropy()}, options=options.get), optimizer="AdamW", lr=0.01)
    return student


METHODS: dict[str, Callable[[Run], Tapped]] = {
    "plain": find("plain"),
    "hinton": find("hinton"),
    "dml in turn": lambda run: find("dml")(run, update="sequential"),
    "dml together": lambda run: find("dml")(run, update="synchronous", peers=3),
    "fitnet": find("fitnet"),
    "at": find("at"),
    "ema and dropout": ema_and_dropout,
    "random numbers between fits": two_fits,
    "a regressor": with_regressor,
    "options by parameter": with_options,
}


Start = Callable[..., tuple[Tapped, Run]]


def checkpoint_contents(folder: Path) -> list[Any]:
    """The content of the last checkpoint of every fit, without durations."""
    states = []
    for number in range(9):
        latest = Checkpoints(folder / "checkpoints", number).latest()
        if latest:
            states.append((latest.name, comparable(read(latest))))
    return states


def comparable(value: Any) -> Any:
    """The value with tensors as bytes, and without durations."""
    if isinstance(value, Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().flatten().view(torch.uint8).tolist()
    if isinstance(value, dict):
        return {key: comparable(entry) for key, entry in value.items() if key != "seconds"}
    if isinstance(value, list | tuple):
        return [comparable(entry) for entry in value]
    return value
