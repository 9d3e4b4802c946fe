"""From a configuration to a trained, saved and measured student."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.ambient import default_settings
from tutelage.config import OBJECT_PREFIX, Config
from tutelage.data import Data
from tutelage.data.configured import load_data
from tutelage.errors import TutelageError
from tutelage.files import as_path, atomic_write
from tutelage.methods import Method, find
from tutelage.models.surgery import applied_operations
from tutelage.models.tapped import Tapped
from tutelage.models.weights import save_weights
from tutelage.parsing import parse_yaml
from tutelage.runs.classes import with_classes
from tutelage.runs.folder import TRACKING, WEIGHTS, RunFolder
from tutelage.runs.header import WEIGHTS_DIGEST
from tutelage.runs.inputs import input_fingerprints
from tutelage.runs.measure import measure
from tutelage.runs.models import TrainedModel, load_student, open_teachers, student_factory, weights_metadata
from tutelage.runs.teachers import announce_teachers, warn_if_costlier
from tutelage.runs.tracking import Trackers
from tutelage.sources import TeacherCache
from tutelage.tasks import Task, find_task, wrap_network
from tutelage.training.hardware import resolve
from tutelage.training.loop import Record
from tutelage.training.processes import Processes
from tutelage.training.run import Run
from tutelage.trust import Trust, check_trusted, typed_specs


@dataclass(frozen=True)
class Result:
    """What a run gives back.

    Attributes:
        model: the student as it was after the last epoch, in eval mode; takes raw pixels (B, C, H, W) in [0, 1], gives
            logits. ``model.module`` is the bare network, which takes normalised images.
        metrics: what ``result.json`` holds.
        history: a record an epoch.
        config: the resolved configuration.
        folder: where it is kept, if anywhere.
    """

    model: Tapped
    metrics: dict[str, Any]
    history: tuple[Record, ...]
    config: Config
    folder: Path | None

    def __post_init__(self) -> None:
        self.model.eval()


@dataclass(frozen=True)
class Overrides:
    """Objects handed over in Python in place of names; what stays ``None`` is opened from the configuration.

    ``task`` is what a method that names no task trains for; by default the task of the data's targets.
    """

    data: Data | None = None
    student: Callable[[], Tapped] | None = None
    teachers: tuple[TrainedModel, ...] | None = None
    method: Method | None = None
    task: Task | None = None


@default_settings()
def execute(
    config: Config,
    folder: str | os.PathLike[str] | None = None,
    *,
    overrides: Overrides = Overrides(),
    report: Callable[[Record], None] | None = None,
    announce: Callable[[str], None] | None = None,
    track: str | None = None,
    trust: Trust | None = None,
) -> Result:
    """Train, save and measure a student as the configuration says.

    With a folder the run can be stopped or killed at any time: executed again it goes on where it was and ends with
    the same bytes, and one that is finished is read back. ``report`` is called with each epoch's record and
    ``announce`` with a line on each teacher before training starts; ``track`` names experiment trackers (see
    ``Trackers``), which may differ each time.
    ``trust`` says whose code may be imported (``check_trusted``): by default that of the networks and the method
    which the configuration names, and none that files of its teachers name.

    Raises:
        TutelageError: for anything the user can mend.
    """
    folder = None if folder is None else as_path(folder)
    trust = typed_specs(config.student, *config.teacher, config.method) if trust is None else trust
    method = _method_of(config, overrides, trust)
    settings = method.check(config.settings)
    processes = Processes.current(config.device)
    hardware = resolve(config.hardware(), processes)
    trackers = Trackers(track, folder / TRACKING if folder else None)
    dumped = method.settings(**settings).model_dump(mode="json")
    config = config.replace(settings=dumped, **hardware.model_dump())
    data = overrides.data if overrides.data is not None else load_data(config)
    task = overrides.task if method.task is None and overrides.task else find_task(method.task or data.targets.task)
    task.check_data(data)
    opened = overrides.teachers if overrides.teachers is not None else open_teachers(config, data, trust=trust)
    teachers = tuple(teacher.model for teacher in opened)
    data = with_classes(data, *((opened[0].model, opened[0].classes) if opened else (None, ())))
    make = overrides.student or student_factory(config.student, data, pretrained=config.pretrained, trust=trust)
    inputs = input_fingerprints(data, teachers, method, task, config, by_name=overrides.student is None)
    place = RunFolder(folder) if folder else None
    if place and (done := place.finished(config, inputs)) is not None:  # the folder may be read-only
        return _read_back(config, place, done, make, data)
    with place.lock() if place and processes.main else nullcontext(), closing(trackers):
        if place and processes.main:
            place.claim(config, inputs)
        processes.wait()
        announce_teachers(config.teacher, opened, task, data, hardware.device, announce if processes.main else None)
        history: list[Record] = []
        if place and processes.main:
            place.start_metrics()
        if processes.main:
            trackers.start(parse_yaml(config.as_yaml()))

        def keep(record: Record) -> None:
            history.append(record)
            if place:
                place.add_metrics(record)
            trackers.epoch(record)
            if report:
                report(record)

        run = Run(
            data,
            warn_if_costlier(make, teachers, task, data, config.student),
            teachers,
            recipe=config.recipe(),
            hardware=hardware,
            seed=config.seed,
            folder=folder,
            write=place.write if place else atomic_write,
            teacher_cache=TeacherCache(config.teacher_cache, data, config.teacher_cache_dtype)
            if config.teacher_cache
            else None,
            report=keep,
            processes=processes,
            check_labels=True,
            task=task,
        )
        student = method(run, **settings)
        if processes.main:
            digest = _save(place, config, student, data, task) if place else {}
            metrics = measure(config, task, data, student, teachers, run, history) | digest
            trackers.test(metrics["test"])
            if place:
                place.write_result(metrics)
        else:
            metrics = {}
        processes.wait()
    return Result(student, metrics, tuple(history), config, folder)


def _method_of(config: Config, overrides: Overrides, trust: Trust) -> Method:
    """The method, once all code that the configuration names is known to be trusted."""
    method = overrides.method or find(config.method, trust)
    if overrides.student is not None:
        return method
    if config.student.startswith(OBJECT_PREFIX):
        raise TutelageError(
            f"the student {config.student!r} was an object of a Python program and can only be given again; name a "
            "network instead, for instance as FILE.py:NAME"
        )
    check_trusted(config.student, trust, "the configuration")
    return method


def _save(place: RunFolder, config: Config, student: Tapped, data: Data, task: Task) -> dict[str, str]:
    """Write the student's weights; their digest, for the result."""
    about = weights_metadata(config.student, student, data, task)
    return {WEIGHTS_DIGEST: save_weights(place.path / WEIGHTS, student.module, about, place.write)}


def _read_back(
    config: Config, place: RunFolder, done: dict[str, Any], make: Callable[[], Tapped], data: Data
) -> Result:
    model = make()
    try:
        module = load_student(place.path / WEIGHTS, model.module, data)
    except TutelageError as error:
        raise TutelageError(
            f"{error}; remove {place.path / 'result.json'} to finish the run from its checkpoint"
        ) from error
    if applied_operations(module):  # the roles of the plain network say nothing of it
        model = wrap_network(module, model.mean.flatten().tolist(), model.std.flatten().tolist())
    return Result(model.to(config.device), done, place.history(), config, place.path)
