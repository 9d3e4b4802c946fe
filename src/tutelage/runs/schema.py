"""The fields of a run's files that are read again, and their types. Other fields are allowed."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field

from tutelage.errors import TutelageError, one_line
from tutelage.fields import Fields
from tutelage.files import read_file
from tutelage.parsing import parse_json
from tutelage.tasks import Metric, Task, find_task, task_names
from tutelage.text import value_text

Count = Annotated[int, Field(ge=0)]


class Recorded(Fields):
    """Fields of a file with exactly these types; other fields are allowed."""

    noun: ClassVar[str] = "the result"
    model_config = ConfigDict(extra="allow", strict=True)


class Trained(Recorded):
    """Evaluation of a classifier on its training split."""

    noun: ClassVar[str] = "train"
    memorised: float | None = None
    wrong_labels: Count = 0


class Selected(Recorded):
    """The epoch with the best score on the held-out split."""

    noun: ClassVar[str] = "selected"
    epoch: int


class Cost(Recorded):
    """Cost of the network."""

    noun: ClassVar[str] = "cost"
    parameters: Count
    flops: Count
    latency_ms: float


class DataSummary(Recorded):
    """The data set and the conditions applied to it."""

    noun: ClassVar[str] = "data"
    name: str
    record: list[dict[str, Any]] = Field(default=[])


class CalibrationResult(Recorded):
    """The calibration of the student, and what it changes on the test split."""

    noun: ClassVar[str] = "calibration"
    temperature: float
    coverage: float
    samples: Count
    test: dict[str, float | None]


class InitialResult(Recorded):
    """The weights that the student started from."""

    noun: ClassVar[str] = "init"
    weights: str
    not_loaded: list[str]


class RunResult(Recorded):
    """``result.json``."""

    method: str
    settings: dict[str, Any]
    seed: Count
    task: str | None = None
    main: str | None = None
    test: dict[str, Any]
    train: Trained | None = None
    selected: Selected | None = None
    cost: Cost
    data: DataSummary
    seconds: float
    forward_passes: dict[str, Count] = Field(default={})
    command: str = ""
    student_sha256: str | None = None
    calibrated_sha256: str | None = None
    calibration: CalibrationResult | None = None
    init: InitialResult | None = None


class Epoch(Recorded):
    """A line of ``metrics.jsonl``."""

    noun: ClassVar[str] = "the epoch"
    learners: Annotated[dict[str, dict[str, float | None]], Field(min_length=1)]


def check_result(path: Path, result: Mapping[str, Any]) -> None:
    """Check the content of ``result.json``.

    Raises:
        TutelageError: a field is missing or has another type.
    """
    try:
        read = RunResult(**result)
        task = _task_of(read)
        main = read.main or (None if task is None else task.main_metric)
        if main is None:
            raise TutelageError("main: field required")
        _check_number("test", read.test, main)
        for name, metric in {} if task is None else task.metrics.items():
            if name in read.test:
                (_check_number if isinstance(metric, Metric) else _check_curve)("test", read.test, name)
        if read.selected is not None:
            _check_number("selected", read.selected.model_dump(), f"test_{main}")
    except TutelageError as error:
        raise TutelageError(f"{path}: {error}; remove it or choose another folder") from None


def _task_of(read: RunResult) -> Task | None:
    """The task of a run; ``None`` if its package is not installed.

    Results of older versions name no task: it is the one whose main metric they contain.
    """
    for name in task_names() if read.task is None else [read.task]:
        with suppress(TutelageError):
            task = find_task(name)
            if read.task is not None or task.main_metric in read.test:
                return task
    return None


def _check_number(field: str, fields: Mapping[str, Any], name: str) -> None:
    if name not in fields:
        raise TutelageError(f"{field}: {name}: field required")
    value = fields[name]
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise TutelageError(f"{field}: {name}: expected a number (got {value_text(value)})")


def _check_curve(field: str, fields: Mapping[str, Any], name: str) -> None:
    """Check a curve: a list or a table, whose entries are numbers or lists of numbers."""
    value = fields[name]
    entries: list[Any] = [*value.values()] if isinstance(value, dict) else value if isinstance(value, list) else [value]
    flat = [number for entry in entries for number in (entry if isinstance(entry, list) else [entry])]
    if not isinstance(value, dict | list) or any(
        isinstance(number, bool) or not isinstance(number, int | float | None) for number in flat
    ):
        raise TutelageError(f"{field}: {name}: expected numbers (got {value_text(value)})")


def read_epochs(path: Path) -> tuple[dict[str, Any], ...]:
    """Read ``metrics.jsonl``.

    Raises:
        TutelageError: the file cannot be read, or a line is not the record of an epoch.
    """
    try:
        lines = read_file(path).splitlines()
    except OSError as error:
        raise TutelageError(f"cannot read {path}: {error.strerror or one_line(error)}") from error
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = parse_json(line)
            if not isinstance(record, dict):
                raise ValueError("expected a table")
            Epoch(**record)
        except (ValueError, TutelageError) as error:
            raise TutelageError(f"{path}, line {number}: {one_line(error)}") from None
        records.append(record)
    return tuple(records)
