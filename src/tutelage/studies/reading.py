"""Reading and validation of a study's files."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tutelage.errors import TutelageError, one_line
from tutelage.files import read_file
from tutelage.parsing import parse_json
from tutelage.studies import PLAIN
from tutelage.studies.metrics import COMMON_METRICS, curves_of, metrics_of, task_metrics
from tutelage.studies.schema import RunRecord, StudyFile
from tutelage.tasks import Task, find_task
from tutelage.text import value_text

RECORDS, TRIALS, STUDY = "results.jsonl", "trials.jsonl", "study.json"
CONDITION = ("data", "noise", "imbalance", "per_class", "teacher_labels")
PAIR = ("teacher", "student")

AXIS_WORDS: Mapping[str, Callable[[Any], str]] = MappingProxyType(
    {
        "data": str,
        "noise": lambda value: "correct labels" if value is None else f"noise {value}",
        "imbalance": lambda value: "balanced classes" if value is None else f"imbalance {value}",
        "per_class": lambda value: "all samples" if value is None else f"{value} samples a class",
        "teacher_labels": lambda value: f"teacher on {value} labels",
    }
)
"""The description of a condition's value, by axis."""

Record = Mapping[str, Any]
"""A planned run: a line of ``results.jsonl``. The metrics of a run that failed or is missing are ``None``."""

DEFAULT_TASK = "classification"
"""The task of a study file that names none, from a version that had only this task."""

_DESCRIPTION = ("key", "folder", "status", "error", *CONDITION, *PAIR, "method", "function", "settings", "seed")
_TABLES = ("corruptions", "pgd", "command", "curve")
_ADDED = ("attacks", "robust_accuracy", "attack_curves")
"""Fields that records of earlier versions lack; they are ``None`` there."""


def fields_of(task: Task) -> tuple[str, ...]:
    """Return the fields of every record of a task.

    Raises:
        TutelageError: a metric of the task has the name of another field.
    """
    if duplicates := [
        name for name in task_metrics(task) if name in (*_DESCRIPTION, *COMMON_METRICS, *_TABLES, *_ADDED, "code")
    ]:
        raise TutelageError(
            f"the task {task.name} has a metric named {duplicates[0]!r}, which is another field of a study's records; "
            "give it another name"
        )
    return (*_DESCRIPTION, *metrics_of(task), *curves_of(task), *_TABLES, "attacks", "attack_curves")


def task_named(study: Mapping[str, Any]) -> Task:
    """Return the task of a study from its declaration.

    Raises:
        TutelageError: there is no such task.
    """
    return find_task(study.get("task") or DEFAULT_TASK)


CellKey = tuple[tuple[Any, ...], tuple[str, str], str]
"""A condition, a pair and a row."""


def cell_key(run: Record) -> CellKey:
    """Return the condition, pair and row of a run."""
    return tuple(run[axis] for axis in CONDITION), (run["teacher"], run["student"]), run["method"]


def read_study_file(path: Path) -> Mapping[str, Any]:
    """Read a declaration.

    Raises:
        TutelageError: the file is damaged, or another version of the package wrote it.
    """
    try:
        study: dict[str, Any] = parse_json(read_file(path))
    except (OSError, ValueError) as error:
        raise TutelageError(f"{path} cannot be read: {one_line(error)}; run the study again") from error
    fields = ("name", *CONDITION, "pairs", "methods", "seeds", "train", "evaluate", "budget")
    lacking = [name for name in fields if name not in study] if isinstance(study, dict) else list(fields)
    if lacking:
        raise TutelageError(f"{path} lacks {_first_names(lacking)}: another version wrote it; run the study again")
    for name in ("methods", "train", "evaluate"):
        if not isinstance(study[name], dict):
            raise TutelageError(f"{path}: {name} must be a table, got {value_text(study[name])}; run the study again")
    seeds, methods = study["seeds"], study["methods"]
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        raise TutelageError(f"{path}: seeds must be whole numbers, got {value_text(seeds)}; run the study again")
    if PLAIN not in methods:
        raise TutelageError(f"{path}: the methods lack {PLAIN!r}; run the study again")
    try:
        StudyFile(**study)
    except TutelageError as error:
        raise TutelageError(f"{path}: {error}; run the study again") from None
    return study


def read_records(path: Path, task: Task, more: Sequence[str] = ()) -> tuple[Record, ...]:
    """Read records of a task, which must also have the ``more`` fields.

    Raises:
        TutelageError: the file or a record is damaged; the message has the record's line number.
    """
    fields, numbers = (*fields_of(task), *more), tuple(metrics_of(task))
    try:
        lines = read_file(path).split(b"\n")
    except OSError as error:
        raise TutelageError(f"{path} cannot be read: {one_line(error)}") from error
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = parse_json(line)
            if isinstance(record, dict):
                record = {**dict.fromkeys(_ADDED), **record}
            problem = _problem(record, fields, numbers)
        except ValueError as error:
            problem = one_line(error)
        if problem:
            raise TutelageError(f"{path}, line {number}: {problem}; remove {path.name} and run the study again")
        records.append(record)
    return tuple(records)


def _problem(record: Any, fields: Sequence[str], numbers: Sequence[str]) -> str | None:
    """Return the first problem of a record, if any."""
    if not isinstance(record, dict):
        return "not a record"
    lacking = [name for name in fields if name not in record]
    if lacking:
        return f"lacks {_first_names(lacking)}, so another version wrote it"
    if record["status"] not in ("done", "failed", "missing"):
        return f"status is {value_text(record['status'])}"
    names = (*PAIR, "method", "folder", "key", "function")
    invalid = [name for name in names if not isinstance(record[name], str)]
    invalid += [axis for axis in CONDITION if isinstance(record[axis], list | dict)]
    invalid += ["seed"] if type(record["seed"]) is not int else []
    invalid += [name for name in numbers if not is_number(record[name])]
    if invalid:
        return f"{invalid[0]} is {value_text(record[invalid[0]])}"
    try:
        RunRecord(**record)
    except TutelageError as error:
        return str(error)
    return None


def is_number(value: Any) -> bool:
    """Whether this is a finite number, or ``None`` for a metric that was not measured."""
    return value is None or (type(value) in (int, float) and math.isfinite(value))


def refuse_gaps(path: Path, study: Mapping[str, Any], runs: Sequence[Record]) -> None:
    """Refuse results in which a row does not have exactly one record per seed."""
    seeds: dict[CellKey, list[int]] = {}
    for run in runs:
        seeds.setdefault(cell_key(run), []).append(run["seed"])
    for condition, pair in {key[:2] for key in seeds}:
        for method in study["methods"]:
            seeds.setdefault((condition, pair, method), [])
    for (condition, pair, method), recorded in seeds.items():
        if sorted(recorded) != sorted(study["seeds"]):
            where = ", ".join(str(part) for part in (*condition, *pair) if part is not None)
            raise TutelageError(
                f"{path} has the seeds {recorded} of {method} ({where}) and {STUDY} says {study['seeds']}; "
                "run the study again"
            )


def _first_names(names: Sequence[str]) -> str:
    text = ", ".join(repr(name) for name in names[:3])
    return text + (f" and {len(names) - 3} more" if len(names) > 3 else "")
