"""Checks of a study before training: its data, networks and methods are opened and tried."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

from tutelage.data import Data, open_data
from tutelage.data.configured import load_data
from tutelage.errors import TutelageError, TutelageWarning
from tutelage.methods import find
from tutelage.models.tapped import Tapped
from tutelage.runs.models import make_student, open_teachers
from tutelage.runs.teacher_labels import label_differences
from tutelage.studies import PLAIN, TEACHER
from tutelage.studies.plan import config_of, is_trained
from tutelage.studies.reading import fields_of
from tutelage.studies.rehearsal import reads_teacher
from tutelage.studies.study import Study
from tutelage.tasks import Task, find_task, incompatibility
from tutelage.trust import Trust, check_trusted


def task_of(study: Study, data: Data) -> Task:
    """Return the task of a study on this data: the one that its methods name, or the one of the data's targets.

    Raises:
        TutelageError: the methods name different tasks, or the data cannot be evaluated for it.
    """
    task_by_row = _named_tasks(study)
    first = next(iter(task_by_row), PLAIN)
    for row, name in task_by_row.items():
        if name != task_by_row[first]:
            raise TutelageError(
                f"a study has one task: {first} is for {task_by_row[first]}, and {row} for {name}; make a study of each"
            )
    task = find_task(task_by_row.get(first, data.targets.task))
    try:
        task.check_data(data)
    except TutelageError as error:
        raise TutelageError(f"the study has the method {first}: {error}" if task_by_row else str(error)) from error
    fields_of(task)
    task.check_extra(study.evaluate)
    if study.task not in (None, task.name):
        raise TutelageError(
            f"the task of the study is {study.task}, but its methods and data are for {task.name}; leave it out"
        )
    return task


def _named_tasks(study: Study) -> dict[str, str]:
    """Return the tasks of the rows whose method names one."""
    tasks = {row: find(variant.method).task for row, variant in study.methods.items()}
    return {row: task for row, task in tasks.items() if task is not None}


def _check_plain(study: Study, task: Task, data: Data, networks: Mapping[str, Tapped]) -> None:
    """Refuse networks that the study's task cannot evaluate, if the data's targets are for another task.

    Raises:
        TutelageError: such a network; the message names both tasks.
    """
    row = next(iter(_named_tasks(study)), PLAIN)
    for name, network in networks.items():
        try:
            task.check_network(network)
            reason = incompatibility(task, network, data)
        except TutelageError as error:
            reason = str(error)
        if reason:
            raise TutelageError(
                f"a study has one task: plain is for {data.targets.task} on {data.name}, and {row} for {task.name}, "
                f"which cannot evaluate {name}: {reason}"
            )


@dataclass(frozen=True)
class Inspection:
    """The results of the checks.

    Attributes:
        task: the task of the study.
        fingerprints: the fingerprint of each data set's training split.
        teacher_free: the rows whose method never reads a teacher.
        other: the data sets whose targets are for another task than the study's.
    """

    task: Task
    fingerprints: Mapping[str, str]
    teacher_free: frozenset[str]
    other: frozenset[str]


def inspect(study: Study, trust: Trust | None = None) -> Inspection:
    """Open and build the data, networks and methods of a study, and do a dry run of each of its runs.

    Args:
        study: the study.
        trust: the code that may be imported (``check_trusted``); the code that the study names, unless given.

    Raises:
        TutelageError: the first problem found.
    """
    trust = study.code if trust is None else trust
    for variant in study.methods.values():
        check_trusted(variant.method, trust, "the study")
    methods = {row: find(variant.method) for row, variant in study.methods.items()}
    for row, variant in study.methods.items():
        methods[row].check(variant.settings)
    if study.evaluate.ood is not None:
        open_data(study.evaluate.ood)
    _warn_of_other_labels(study)

    def open_network(network: str, data: Data) -> Tapped:
        if is_trained(network):
            return open_teachers(config_of(study, teacher=(network,)), data, trust=trust)[0].model
        check_trusted(network, trust, "the study")
        return make_student(network, data, trust=trust)

    def rehearse(row: str, data: Data, student: str, teacher: Tapped | None, task: Task) -> bool:
        name = PLAIN if row == TEACHER else row
        config = config_of(study, student=student)
        try:
            return reads_teacher(methods[name], study.methods[name].settings, data, config, teacher, task)
        except TutelageError as error:
            raise TutelageError(f"{row} cannot train {student} on {data.name}: {error}") from error

    fingerprints: dict[str, str] = {}
    teacher_readers: set[str] = set()
    tasks: dict[str, Task] = {}
    other: set[str] = set()
    for spec in study.data:
        plain = load_data(config_of(study, data=spec))
        fingerprints[spec] = plain.fingerprint
        tasks[spec] = task = task_of(study, plain)
        if task is not tasks[study.data[0]]:
            raise TutelageError(
                f"a study has one task: {study.data[0]} is for {tasks[study.data[0]].name}, and {spec} for {task.name};"
                " make a study of each"
            )
        networks = {
            name: open_network(name, plain) for name in dict.fromkeys(n for pair in study.all_pairs for n in pair)
        }
        if task.name != plain.targets.task:
            other.add(spec)
            _check_plain(study, task, plain, networks)
        for name in dict.fromkeys(teacher for teacher, _ in study.all_pairs if not is_trained(teacher)):
            rehearse(TEACHER, plain, name, None, task)
        for noise, imbalance, per_class in product(study.noise, study.imbalance, study.per_class):
            data = plain
            if (noise, imbalance, per_class) != (None, None, None):
                data = load_data(config_of(study, data=spec, noise=noise, imbalance=imbalance, per_class=per_class))
            for (teacher, student), row in product(study.all_pairs, study.methods):
                if rehearse(row, data, student, networks[teacher], task):
                    teacher_readers.add(row)
    return Inspection(tasks[study.data[0]], fingerprints, frozenset(study.methods) - teacher_readers, frozenset(other))


def _warn_of_other_labels(study: Study) -> None:
    """Warn once if a trained teacher may have been trained on labels that a student of the study does not get."""
    trained_teachers = {teacher for teacher, _ in study.all_pairs if is_trained(teacher)}
    conditions = product(
        study.data, study.noise, study.imbalance, study.per_class, study.seeds, sorted(trained_teachers)
    )
    for data, noise, imbalance, per_class, seed, teacher in conditions:
        config = config_of(study, data=data, noise=noise, imbalance=imbalance, per_class=per_class, seed=seed)
        if text := label_differences(teacher, config):
            warnings.warn(text, TutelageWarning, stacklevel=3)
            return
