"""From a configuration to a trained, saved and measured student."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from tutelage.ambient import default_settings
from tutelage.config import GIVEN, Config
from tutelage.data import Data, open_data
from tutelage.data.conditions import HumanLabels, Subset, parse_imbalance, parse_noise
from tutelage.errors import TutelageError
from tutelage.evaluation import cost_of
from tutelage.files import as_path, atomic_write
from tutelage.methods import Method, find
from tutelage.models.doors.imported import attribute_of
from tutelage.models.fingerprint import fingerprint
from tutelage.models.load import is_imported
from tutelage.models.state import check_state
from tutelage.models.surgery import surgery_of
from tutelage.models.tapped import Tapped
from tutelage.models.weights import save_weights
from tutelage.parsing import parse_yaml
from tutelage.runs.classes import with_classes
from tutelage.runs.code import digest_of_method, digest_of_networks
from tutelage.runs.commands import as_command
from tutelage.runs.folder import NETWORK_CODE, TRACKING, WEIGHTS, RunFolder
from tutelage.runs.header import WEIGHTS_DIGEST
from tutelage.runs.models import (
    Opened,
    about_model,
    load_student,
    open_teachers,
    student_maker,
)
from tutelage.runs.teachers import compared, introduce, reference
from tutelage.runs.tracking import Trackers
from tutelage.sources import AnswerStore
from tutelage.tasks import Compute, Task, wrapped
from tutelage.tasks import find as find_task
from tutelage.training.hardware import resolve
from tutelage.training.loop import Record
from tutelage.training.processes import Processes
from tutelage.training.run import Run
from tutelage.training.selection import Selected
from tutelage.training.side_by_side import Seat
from tutelage.trust import Trust, check_trusted, typed


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
class Given:
    """Objects handed over in Python in place of names; what stays ``None`` is opened from the configuration.

    ``task`` is what a method that names no task trains for; what the data's targets are for unless given.
    """

    data: Data | None = None
    student: Callable[[], Tapped] | None = None
    teachers: tuple[Opened, ...] | None = None
    method: Method | None = None
    task: Task | None = None


@default_settings()
def execute(
    config: Config,
    folder: str | os.PathLike[str] | None = None,
    *,
    given: Given = Given(),
    report: Callable[[Record], None] | None = None,
    announce: Callable[[str], None] | None = None,
    track: str | None = None,
    seat: Seat | None = None,
    trust: Trust | None = None,
) -> Result:
    """Train, save and measure a student as the configuration says.

    With a folder the run can be stopped or killed at any time: executed again it goes on where it was and ends with
    the same bytes, and one that is finished is read back. ``report`` is called with each epoch's record and
    ``announce`` with a line on each teacher before training starts; ``track`` names experiment trackers (see
    ``Trackers``), which may differ each time; ``seat`` is the run's place among those that train side by side.
    ``trust`` says whose code may be imported (``check_trusted``): unless given, that of the networks and the method
    which the configuration names, and none that files of its teachers name.

    Raises:
        TutelageError: for anything the user can mend.
    """
    folder = None if folder is None else as_path(folder)
    trust = typed(config.student, *config.teacher, config.method) if trust is None else trust
    method = _method_of(config, given, trust)
    settings = method.check(config.settings)
    processes = Processes.current(config.device)
    hardware = resolve(config.hardware(), processes)
    trackers = Trackers(track, folder / TRACKING if folder else None)
    dumped = method.settings(**settings).model_dump(mode="json")
    config = config.but(settings=dumped, **hardware.model_dump())
    data = given.data if given.data is not None else load_data(config)
    task = given.task if method.task is None and given.task else find_task(method.task or data.targets.task)
    task.check_data(data)
    opened = given.teachers if given.teachers is not None else open_teachers(config, data, trust=trust)
    teachers = tuple(teacher.model for teacher in opened)
    data = with_classes(data, *((opened[0].model, opened[0].classes) if opened else (None, ())))
    make = given.student or student_maker(config.student, data, pretrained=config.pretrained, trust=trust)
    inputs = _inputs(data, teachers, method, task, config, given)
    place = RunFolder(folder) if folder else None
    if place and (done := place.finished(config, inputs)) is not None:  # the folder may be read-only
        return _read_back(config, place, done, make, data)
    with place.lock() if place and processes.main else nullcontext(), closing(trackers):
        if place and processes.main:
            place.claim(config, inputs)
        processes.wait()
        introduce(config.teacher, opened, task, data, hardware.device, announce if processes.main else None)
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
            compared(make, teachers, task, data, config.student),
            teachers,
            recipe=config.recipe(),
            hardware=hardware,
            seed=config.seed,
            folder=folder,
            write=place.write if place else atomic_write,
            answers=AnswerStore(config.answers, data, config.answers_as) if config.answers else None,
            report=keep,
            processes=processes,
            seat=seat,
            check_labels=True,
            task=task,
        )
        student = method(run, **settings)
        if processes.main:
            digest = _save(place, config, student, data, task) if place else {}
            metrics = _measure(config, task, data, student, teachers, run, history) | digest
            trackers.test(metrics["test"])
            if place:
                place.write_result(metrics)
        else:
            metrics = {}
        processes.wait()
    return Result(student, metrics, tuple(history), config, folder)


def _method_of(config: Config, given: Given, trust: Trust) -> Method:
    """The method, once all code that the configuration names is known to be trusted."""
    method = given.method or find(config.method, trust)
    if given.student is not None:
        return method
    if config.student.startswith(GIVEN):
        raise TutelageError(
            f"the student {config.student!r} was an object of a Python program and can only be given again; name a "
            "network instead, for instance as FILE.py:NAME"
        )
    check_trusted(config.student, trust, "the configuration")
    return method


def _save(place: RunFolder, config: Config, student: Tapped, data: Data, task: Task) -> dict[str, str]:
    """Write the student's weights; their digest, for the result."""
    about = about_model(config.student, student, data, task)
    return {WEIGHTS_DIGEST: save_weights(place.path / WEIGHTS, student.module, about, place.write)}


@default_settings()
def load_data(config: Config) -> Data:
    """The data set under the configuration's conditions, with its part held out."""
    data = open_data(config.data, image_size=config.image_size, test=config.test, skip_bad=config.skip_bad)
    if not config.augment:
        data = replace(data, views=data.modality.unaugmented)
    if config.views is not None:
        data = replace(data, views=data.views.limited(config.views))
    noises = parse_noise(config.noise, config.seed) if config.noise is not None else ()
    rare = parse_imbalance(config.imbalance) if config.imbalance is not None else None
    few = Subset(config.per_class, config.seed) if config.per_class is not None else None
    # The rows of a file of human labels are those of the whole training part; all other noise is of what is kept.
    human = [noise for noise in noises if isinstance(noise, HumanLabels)]
    for condition in (*human, rare, few, *noises[len(human) :]):
        data = condition(data) if condition else data
    return data.hold_out(config.validation, config.seed)


def _measure(
    config: Config,
    task: Task,
    data: Data,
    student: Tapped,
    teachers: Sequence[Tapped],
    run: Run,
    history: Sequence[Record],
) -> dict[str, Any]:
    """Everything ``result.json`` says. This is the one place where the test part is read."""
    compute = Compute(config.device, workers=config.workers)
    teacher = reference(task, teachers, data)
    if teacher is not None:
        teacher = teacher.to(config.device)
    metrics: dict[str, Any] = {
        "method": config.method,
        "settings": config.settings,
        "seed": config.seed,
        "task": task.name,
        "main": task.main,
        "test": task.evaluate(student, data.test, data, compute, teacher=teacher),
    }
    for who, network in {"train": student, "teacher": teacher}.items():
        if network is not None and (measured := task.on_training_labels(network, data, compute)):
            metrics[who] = measured
    metrics |= {
        "cost": cost_of(student, task.example(student, data)),
        "data": data.summary(),
        "seconds": round(sum(record["seconds"] for record in history), 3),
        "forward_passes": {
            who: sum(record["forward_passes"][who] for record in history) for who in ("student", "teacher")
        },
        "command": as_command(config),
    }
    if (selected := run.selected.get(student)) is not None:
        metrics["selected"] = _selected(student, selected, task, data, compute)
    return metrics | ({"notes": run.notes} if run.notes else {})


def _selected(student: Tapped, selected: Selected, task: Task, data: Data, compute: Compute) -> dict[str, Any]:
    """The student of the best epoch on the test part; the student itself is left as it is."""
    last = {name: value.clone() for name, value in student.module.state_dict().items()}
    student.module.load_state_dict(dict(selected.state))
    score = task.evaluate(student, data.test, data, compute)[task.main]
    student.module.load_state_dict(last)
    return {"epoch": selected.epoch, f"validation_{task.main}": selected.score, f"test_{task.main}": score}


def _inputs(
    data: Data, teachers: Sequence[nn.Module], method: Method, task: Task, config: Config, given: Given
) -> dict[str, str]:
    """Fingerprints of what a run reads, so that it is not continued on something else."""
    inputs = {"training data": data.fingerprint}
    inputs |= {f"teacher {number}": fingerprint(teacher) for number, teacher in enumerate(teachers, 1)}
    if method.task is None and task.name != data.targets.task:
        inputs["task"] = task.name
    networks = config.teacher
    if given.student is None:
        if is_imported(config.student):
            attribute_of(config.student, "model")  # whose files are known once it is imported
        networks = (config.student, *networks)
    code = {"method source": digest_of_method(method), NETWORK_CODE: digest_of_networks(networks)}
    return inputs | {name: digest for name, digest in code.items() if digest is not None}


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
    if surgery_of(module):  # the roles of the plain network say nothing of it
        model = wrapped(module, model.mean.flatten().tolist(), model.std.flatten().tolist())
    return Result(model.to(config.device), done, place.history(), config, place.path)


def describe(value: object, *, weights: bool) -> str:
    """What a configuration says of an object that has no name.

    A teacher is told by its weights. A student by its shape alone, since training changes the weights of the very
    object, and the run is to go on when it is asked for again.
    """
    if isinstance(value, Tapped):
        value = value.module
    named = value if hasattr(value, "__qualname__") else type(value)
    name = f"{GIVEN}{named.__module__}.{named.__qualname__}"
    if not isinstance(value, nn.Module):
        return name
    return f"{name}:{fingerprint(value) if weights else _shape(value)}"


def _shape(model: nn.Module) -> str:
    check_state(type(model).__name__, model)
    shapes = repr([(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()])
    return hashlib.sha256(shapes.encode()).hexdigest()[:16]
