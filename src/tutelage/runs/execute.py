"""Execute a run: from a configuration to a trained, saved and evaluated student."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

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
from tutelage.runs.header import SAMPLES_DIGEST, WEIGHTS_DIGEST, read_header
from tutelage.runs.initial_weights import open_initial_weights
from tutelage.runs.inputs import input_fingerprints
from tutelage.runs.measure import measure
from tutelage.runs.models import TrainedModel, load_student, open_teachers, student_factory, weights_metadata
from tutelage.runs.samples import read_samples, save_samples
from tutelage.runs.students import StudentStart
from tutelage.runs.teachers import announce_teachers
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
    """The result of a run.

    Attributes:
        model: the student after the last epoch, in eval mode. It maps raw pixels (B, C, H, W) in [0, 1] to logits;
            ``model.module`` is the bare network, which takes normalised images.
        metrics: the content of ``result.json``.
        history: one record per epoch.
        config: the resolved configuration.
        folder: the run's folder, if it has one.
        samples: results of the method for each training sample, if it has any: (N, ...) tensors by name.
    """

    model: Tapped
    metrics: dict[str, Any]
    history: tuple[Record, ...]
    config: Config
    folder: Path | None
    samples: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.model.eval()


@dataclass(frozen=True)
class Overrides:
    """Python objects that replace what the configuration names; fields that are ``None`` come from the configuration.

    ``task`` applies to methods that name no task; its default is the task of the data's targets.
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
    """Train, save and evaluate a student.

    A run with a folder can be stopped or killed at any time: the same call resumes it and ends with the same bytes. A
    finished run is read from its folder.

    Args:
        config: everything that the run depends on.
        folder: the run's folder; without one nothing is saved.
        overrides: Python objects that replace what the configuration names.
        report: called with each epoch's record.
        announce: called with one line for each teacher before training starts.
        track: names of experiment trackers (see ``Trackers``); they may differ when the run is resumed.
        trust: code that may be imported (``check_trusted``): by default that of the networks and the method which the
            configuration names, but none that files of its teachers name.

    Raises:
        TutelageError: for anything that the user can correct.
    """
    folder = None if folder is None else as_path(folder)
    trust = typed_specs(config.student, *config.teacher, config.method) if trust is None else trust
    method = _method_of(config, overrides, trust)
    settings = method.check(config.settings)
    processes = Processes.current(config.device)
    hardware = resolve(config.hardware(), processes)
    trackers = Trackers(track, folder / TRACKING if folder else None)
    plain_settings = method.settings(**settings).model_dump(mode="json")
    config = config.replace(settings=plain_settings, **hardware.model_dump())
    data = overrides.data if overrides.data is not None else load_data(config)
    task = overrides.task if method.task is None and overrides.task else find_task(method.task or data.targets.task)
    task.check_data(data)
    trained_teachers = (
        overrides.teachers if overrides.teachers is not None else open_teachers(config, data, trust=trust)
    )
    teachers = tuple(teacher.model for teacher in trained_teachers)
    data = with_classes(
        data, *((trained_teachers[0].model, trained_teachers[0].classes) if trained_teachers else (None, ()))
    )
    make_student = overrides.student or student_factory(config.student, data, pretrained=config.pretrained, trust=trust)
    weights = open_initial_weights(config.init) if config.init is not None else None
    inputs = input_fingerprints(data, teachers, method, task, config, weights, by_name=overrides.student is None)
    run_folder = RunFolder(folder) if folder else None
    if run_folder and (metrics := run_folder.finished(config, inputs)) is not None:  # the folder may be read-only
        return _read_finished(config, run_folder, metrics, make_student, data)
    with run_folder.lock() if run_folder and processes.main else nullcontext(), closing(trackers):
        if run_folder and processes.main:
            run_folder.claim(config, inputs)
        processes.wait()
        announce_teachers(
            config.teacher, trained_teachers, task, data, hardware.device, announce if processes.main else None
        )
        history: list[Record] = []
        if run_folder and processes.main:
            run_folder.start_metrics()
        if processes.main:
            trackers.start(parse_yaml(config.as_yaml()))

        def on_epoch(record: Record) -> None:
            history.append(record)
            if run_folder:
                run_folder.add_metrics(record)
            trackers.epoch(record)
            if report:
                report(record)

        start = StudentStart(config, data, weights, teachers, task, announce if processes.main else None)
        run = Run(
            data,
            make_student,
            teachers,
            recipe=config.recipe(),
            hardware=hardware,
            seed=config.seed,
            folder=folder,
            write=run_folder.write if run_folder else atomic_write,
            teacher_cache=_teacher_cache(config, data),
            report=on_epoch,
            processes=processes,
            start=start,
            check_labels=True,
            task=task,
        )
        student = method(run, **settings)
        if processes.main:
            digest = _save(run_folder, config, student, data, task, run.samples) if run_folder else {}
            metrics = measure(config, task, data, student, teachers, run, history) | start.record | digest
            trackers.test(metrics["test"])
            if run_folder:
                run_folder.write_result(metrics)
        else:
            metrics = {}
        processes.wait()
    return Result(student, metrics, tuple(history), config, folder, run.samples)


def _teacher_cache(config: Config, data: Data) -> TeacherCache | None:
    return TeacherCache(config.teacher_cache, data, config.teacher_cache_dtype) if config.teacher_cache else None


def _method_of(config: Config, overrides: Overrides, trust: Trust) -> Method:
    """Find the method, after checking that all code which the configuration names is trusted."""
    method = overrides.method or find(config.method, trust)
    if overrides.student is not None:
        return method
    if config.student.startswith(OBJECT_PREFIX):
        raise TutelageError(
            f"the student {config.student!r} was an object in a Python program: pass that object again, or name a "
            "network, for example as FILE.py:NAME"
        )
    check_trusted(config.student, trust, "the configuration")
    return method


def _save(
    run_folder: RunFolder, config: Config, student: Tapped, data: Data, task: Task, samples: Mapping[str, Tensor]
) -> dict[str, str]:
    """Write the student's weights and the results for each sample; returns their digests, entries of the result."""
    metadata = weights_metadata(config.student, student, data, task)
    digest = save_weights(run_folder.path / WEIGHTS, student.module, metadata, run_folder.write)
    return {WEIGHTS_DIGEST: digest} | save_samples(run_folder.path, samples, run_folder.write)


def _read_finished(
    config: Config, run_folder: RunFolder, metrics: dict[str, Any], make_student: Callable[[], Tapped], data: Data
) -> Result:
    """Read the result of a finished run from its folder."""
    model, file = make_student(), run_folder.path / WEIGHTS
    try:
        module = load_student(file, model.module, data)
    except TutelageError as error:
        raise TutelageError(
            f"{error}; remove {run_folder.path / 'result.json'} to finish the run from its checkpoint"
        ) from error
    own = (model.mean.flatten().tolist(), model.std.flatten().tolist())
    mean_std = read_header(file).mean_std(data.input_shape[0]) or own
    if applied_operations(module):  # its layers have other roles than those of the plain network
        model = wrap_network(module, *mean_std)
    elif not model.has_normalisation(*mean_std):  # of the weights that it started from
        model = model.with_normalisation(*mean_std)
    samples = read_samples(run_folder.path) if SAMPLES_DIGEST in metrics else {}
    return Result(model.to(config.device), metrics, run_folder.history(), config, run_folder.path, samples)
