"""Two studies, or two runs, beside each other: refused where what should be equal is not."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tutelage.config import Config, ExtraEvaluation, Hardware, read_config
from tutelage.errors import TutelageError, one_line
from tutelage.files import as_path, read_file
from tutelage.parsing import parse_json
from tutelage.studies.reading import CONDITION, PAIR, Record
from tutelage.studies.results import Cell, Results, missing_reason
from tutelage.studies.statistics import Interval, paired_difference
from tutelage.studies.study import GRID_FIELDS
from tutelage.tasks import Metric
from tutelage.text import value_text

Both = tuple[Any, Any]
"""A value in A and in B."""

_CONFIG, _INPUTS, _RESULT = "config.yaml", "inputs.json", "result.json"
_OF_THE_DATA = ("data", "image_size", "noise", "imbalance", "per_class", "validation", "seed")


@dataclass(frozen=True)
class Change:
    """A row that both studies have.

    Attributes:
        condition: the fields of ``CONDITION``.
        pair: the fields of ``PAIR``.
        method: the row's name.
        difference: B - A, paired over the common seeds, with its 95 % t interval; ``None`` where a number is lacking.
        missing: which number that is.
    """

    condition: tuple[Any, ...]
    pair: tuple[str, str]
    method: str
    difference: Interval | None
    missing: str | None


@dataclass(frozen=True)
class StudyDifference:
    """Two studies.

    Attributes:
        metric: the name of what the differences are of; ``about`` says what that is.
        seeds: those that both have; all differences are paired over them.
        setup_changes: what differs and may: rows with another method or other settings, and the hardware.
        changes: the rows that both have.
        only_a, only_b: the rows that one has and the other has not.
    """

    metric: str
    about: Metric
    seeds: tuple[int, ...]
    setup_changes: Mapping[str, Both]
    changes: tuple[Change, ...]
    only_a: tuple[Cell, ...]
    only_b: tuple[Cell, ...]


@dataclass(frozen=True)
class RunDifference:
    """Two runs.

    Attributes:
        config: the fields that differ.
        numbers: everything that either measured, by its place in ``result.json``; ``None`` in one that has it not.
    """

    config: Mapping[str, Both]
    numbers: Mapping[str, Both]


def compare_studies(a: str | os.PathLike[str], b: str | os.PathLike[str], metric: str | None = None) -> StudyDifference:
    """The differences B - A of every condition, pair and method that both have, over the seeds that both have.

    Args:
        a, b: the studies' folders.
        metric: of what; the task's main metric unless given.

    Raises:
        TutelageError: when their task, how they train, what they evaluate, their tuning budget or their data differ,
            when they have no seed or row in common, or one cannot be read.
    """
    a, b = as_path(a), as_path(b)
    first, second = Results.read(a), Results.read(b)
    _refuse(a, b, _unequal({"task": first.task.name}, {"task": second.task.name}))
    metric = first.metric_name(metric)
    unequal = _unequal(_settings(first.study), _settings(second.study))
    hardware = {f"train.{name}" for name in Hardware.model_fields if name != "precision"}
    _refuse(a, b, {name: both for name, both in unequal.items() if name not in hardware})
    seeds = tuple(seed for seed in first.study["seeds"] if seed in second.study["seeds"])
    if not seeds:
        _refuse(a, b, {"seeds": (first.study["seeds"], second.study["seeds"])})
    ours, theirs = ({(cell.condition, cell.pair, cell.method): cell for cell in each.cells} for each in (first, second))
    common = [(cell, theirs[place]) for place, cell in ours.items() if place in theirs]
    if not common:
        _refuse(a, b, _unequal(_grid(first), _grid(second)))
    for here, there in common:
        for old, new in zip(_of(here, seeds), _of(there, seeds), strict=True):
            _refuse(a, b, _other_data(a / old["folder"], b / new["folder"]))
    methods = first.study["methods"], second.study["methods"]
    return StudyDifference(
        metric=metric,
        about=first.metrics[metric],
        seeds=seeds,
        setup_changes={
            **{row: (methods[0][row], new) for row, new in methods[1].items() if methods[0].get(row, new) != new},
            **unequal,
        },
        changes=tuple(_change(here, there, seeds, metric) for here, there in common),
        only_a=tuple(cell for place, cell in ours.items() if place not in theirs),
        only_b=tuple(cell for place, cell in theirs.items() if place not in ours),
    )


def compare_runs(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> RunDifference:
    """What two finished runs were told and measured, field by field.

    Raises:
        TutelageError: when their data or their test parts differ, or one is no finished run.
    """
    a, b = as_path(a), as_path(b)
    (told_a, measured_a), (told_b, measured_b) = _read_run(a), _read_run(b)
    conditions = [name for name in _OF_THE_DATA if told_a.get(name) != told_b.get(name)]
    unequal = _unequal(_test_part(measured_a), _test_part(measured_b))
    if not conditions:  # otherwise the training parts may differ
        unequal |= _other_data(a, b)
    moved = _fingerprint(a) is not None and _fingerprint(a) == _fingerprint(b)  # the same data by another name
    for name in ("data", "image_size"):
        if name in conditions and not moved:
            unequal[name] = (told_a.get(name), told_b.get(name))
    _refuse(a, b, unequal)
    numbers = [dict(_numbers(each)) for each in (measured_a, measured_b)]
    return RunDifference(
        config=_unequal(told_a, told_b),
        numbers={name: (numbers[0].get(name), numbers[1].get(name)) for name in {**numbers[0], **numbers[1]}},
    )


# --- of studies


def _settings(study: Mapping[str, Any]) -> dict[str, Any]:
    """What two studies have to share, the defaults of what was not said included."""
    train = Config(**study["train"]).model_dump(mode="json", include=set(Config.model_fields) - set(GRID_FIELDS))
    evaluate = ExtraEvaluation(**study["evaluate"]).model_dump(mode="json")
    return {
        **{f"train.{name}": value for name, value in train.items()},
        **{f"evaluate.{name}": value for name, value in evaluate.items()},
        "budget": study["budget"],
    }


def _grid(results: Results) -> dict[str, Any]:
    """The values of every axis of a study."""
    axes = {axis: [run[axis] for run in results.runs] for axis in (*CONDITION, *PAIR)}
    return {axis: list(dict.fromkeys(values)) for axis, values in axes.items()}


def _of(cell: Cell, seeds: Sequence[int]) -> list[Record]:
    return [run for seed in seeds for run in cell.runs if run["seed"] == seed]


def _change(here: Cell, there: Cell, seeds: Sequence[int], metric: str) -> Change:
    found = [replace(cell, runs=tuple(_of(cell, seeds))) for cell in (here, there)]
    ours, theirs = (cell.values(metric) for cell in found)
    if ours is not None and theirs is not None:
        return Change(here.condition, here.pair, here.method, paired_difference(theirs, ours), None)
    missing = "; ".join(
        f"{name}: {missing_reason(cell)}" for name, cell in zip("AB", found, strict=True) if cell.values(metric) is None
    )
    return Change(here.condition, here.pair, here.method, None, missing)


# --- of runs


def _read_run(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Its configuration and its result."""
    if not (folder / _CONFIG).is_file():
        raise TutelageError(f"{str(folder)!r} holds neither a study nor a run; name two studies or two runs")
    told, result = read_config(folder / _CONFIG), _read(folder / _RESULT)
    if not result:
        raise TutelageError(f"the run in {str(folder)!r} is not finished; the same command goes on where it was")
    return told, result


def _numbers(measured: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a result by its place, such as ``test.accuracy``; not what it was told, and no lists."""
    for name, value in measured.items():
        if isinstance(value, dict) and before + name not in ("data", "settings"):
            yield from _numbers(value, f"{before}{name}.")
        elif type(value) in (int, float) and before + name != "seed":
            yield before + name, value


# --- of both


def _other_data(a: Path, b: Path) -> dict[str, Both]:
    """In what the data of two runs differ that were told the same; what either has not kept is not known to differ."""
    ours, theirs = _fingerprint(a), _fingerprint(b)
    results = [_read(folder / _RESULT) for folder in (a, b)]
    unequal = _unequal(_test_part(results[0]), _test_part(results[1])) if all(results) else {}
    if ours and theirs and ours != theirs:
        unequal["the training data's fingerprint"] = (ours, theirs)
    return unequal


def _fingerprint(folder: Path) -> Any:
    """Of the training part's images and labels, the first sixteen digits; ``None`` where it was not kept."""
    saved = (_read(folder / _INPUTS) or {}).get("training data")
    return saved[:16] if isinstance(saved, str) else None


def _test_part(result: Mapping[str, Any] | None) -> dict[str, Any]:
    data = (result or {}).get("data")
    about = data if isinstance(data, dict) else {}
    counts = about.get("counts")
    return {
        "classes": about.get("classes"),
        "image shape": about.get("image_shape"),
        "test images a class": counts.get("test") if isinstance(counts, dict) else None,
    }


def _read(path: Path) -> dict[str, Any] | None:
    try:
        read = parse_json(read_file(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise TutelageError(f"{path} cannot be read: {one_line(error)}; run it again") from error
    if not isinstance(read, dict):
        raise TutelageError(f"{path} holds no table; run it again")
    return read


def _unequal(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Both]:
    return {name: (a.get(name), b.get(name)) for name in {**a, **b} if a.get(name) != b.get(name)}


def _refuse(a: Path, b: Path, unequal: Mapping[str, Both]) -> None:
    if unequal:
        said = "; ".join(
            f"{name} is {value_text(here)} in the first, {value_text(there)} in the second"
            for name, (here, there) in unequal.items()
        )
        raise TutelageError(f"{a} and {b} cannot be compared: {said}")
