"""Comparison of two studies or two runs, refused if conditions that must be equal differ."""

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
"""The values in A and in B."""

_CONFIG, _INPUTS, _RESULT = "config.yaml", "inputs.json", "result.json"
_DATA_FIELDS = ("data", "image_size", "noise", "imbalance", "per_class", "validation", "seed")


@dataclass(frozen=True)
class Change:
    """The change of a row that both studies have.

    Attributes:
        condition: the fields of ``CONDITION``.
        pair: the fields of ``PAIR``.
        method: the name of the row.
        difference: B - A, paired over the common seeds, with its 95 % t interval; ``None`` if a value is missing.
        missing: the reason for a missing value.
    """

    condition: tuple[Any, ...]
    pair: tuple[str, str]
    method: str
    difference: Interval | None
    missing: str | None


@dataclass(frozen=True)
class StudyDifference:
    """The differences of two studies.

    Attributes:
        metric: the name of the compared metric; ``about`` describes it.
        seeds: the common seeds, over which all differences are paired.
        setup_changes: permitted differences: rows with another method or other settings, and the hardware.
        changes: the changes of the rows that both have.
        only_a, only_b: the rows that only one of them has.
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
    """The differences of two runs.

    Attributes:
        config: the fields that differ.
        numbers: all metrics by their path in ``result.json``; ``None`` for a run without this metric.
    """

    config: Mapping[str, Both]
    numbers: Mapping[str, Both]


def compare_studies(a: str | os.PathLike[str], b: str | os.PathLike[str], metric: str | None = None) -> StudyDifference:
    """Return the differences B - A of the conditions, pairs and methods that both studies have, over common seeds.

    Args:
        a, b: the studies' folders.
        metric: the metric to compare; the task's main metric unless given.

    Raises:
        TutelageError: the tasks, training, evaluation, tuning budgets or data differ, the studies have no common
            seed or row, or one cannot be read.
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
    cells_a, cells_b = ({_identity(cell): cell for cell in results.cells} for results in (first, second))
    common = [(cell, cells_b[key]) for key, cell in cells_a.items() if key in cells_b]
    if not common:
        _refuse(a, b, _unequal(_grid(first), _grid(second)))
    for cell_a, cell_b in common:
        for old, new in zip(_runs_of(cell_a, seeds), _runs_of(cell_b, seeds), strict=True):
            _refuse(a, b, _data_differences(a / old["folder"], b / new["folder"]))
    methods = first.study["methods"], second.study["methods"]
    return StudyDifference(
        metric=metric,
        about=first.metrics[metric],
        seeds=seeds,
        setup_changes={
            **{row: (methods[0][row], new) for row, new in methods[1].items() if methods[0].get(row, new) != new},
            **unequal,
        },
        changes=tuple(_change(cell_a, cell_b, seeds, metric) for cell_a, cell_b in common),
        only_a=tuple(cell for key, cell in cells_a.items() if key not in cells_b),
        only_b=tuple(cell for key, cell in cells_b.items() if key not in cells_a),
    )


def compare_runs(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> RunDifference:
    """Return the differences in configuration and metrics of two finished runs.

    Raises:
        TutelageError: their data or their test splits differ, or one is not a finished run.
    """
    a, b = as_path(a), as_path(b)
    (config_a, measured_a), (config_b, measured_b) = _read_run(a), _read_run(b)
    conditions = [name for name in _DATA_FIELDS if config_a.get(name) != config_b.get(name)]
    unequal = _unequal(_test_split(measured_a), _test_split(measured_b))
    if not conditions:  # otherwise the training splits may differ
        unequal |= _data_differences(a, b)
    is_renamed = _fingerprint(a) is not None and _fingerprint(a) == _fingerprint(b)  # the same data under another name
    for name in ("data", "image_size"):
        if name in conditions and not is_renamed:
            unequal[name] = (config_a.get(name), config_b.get(name))
    _refuse(a, b, unequal)
    numbers = [dict(_numbers(measured)) for measured in (measured_a, measured_b)]
    return RunDifference(
        config=_unequal(config_a, config_b),
        numbers={name: (numbers[0].get(name), numbers[1].get(name)) for name in {**numbers[0], **numbers[1]}},
    )


# --- studies


def _settings(study: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that two studies must share, with defaults."""
    train = Config(**study["train"]).model_dump(mode="json", include=set(Config.model_fields) - set(GRID_FIELDS))
    evaluate = ExtraEvaluation(**study["evaluate"]).model_dump(mode="json")
    return {
        **{f"train.{name}": value for name, value in train.items()},
        **{f"evaluate.{name}": value for name, value in evaluate.items()},
        "budget": study["budget"],
    }


def _grid(results: Results) -> dict[str, Any]:
    """Return the values of every axis of a study."""
    axes = {axis: [run[axis] for run in results.runs] for axis in (*CONDITION, *PAIR)}
    return {axis: list(dict.fromkeys(values)) for axis, values in axes.items()}


def _identity(cell: Cell) -> tuple[Any, ...]:
    return cell.condition, cell.pair, cell.method


def _runs_of(cell: Cell, seeds: Sequence[int]) -> list[Record]:
    return [run for seed in seeds for run in cell.runs if run["seed"] == seed]


def _change(cell_a: Cell, cell_b: Cell, seeds: Sequence[int], metric: str) -> Change:
    cells = [replace(cell, runs=tuple(_runs_of(cell, seeds))) for cell in (cell_a, cell_b)]
    values_a, values_b = (cell.values(metric) for cell in cells)
    if values_a is not None and values_b is not None:
        return Change(cell_a.condition, cell_a.pair, cell_a.method, paired_difference(values_b, values_a), None)
    missing = "; ".join(
        f"{name}: {missing_reason(cell)}" for name, cell in zip("AB", cells, strict=True) if cell.values(metric) is None
    )
    return Change(cell_a.condition, cell_a.pair, cell_a.method, None, missing)


# --- runs


def _read_run(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the configuration and the result of a run."""
    if not (folder / _CONFIG).is_file():
        raise TutelageError(f"{str(folder)!r} holds neither a study nor a run; name two studies or two runs")
    config, result = read_config(folder / _CONFIG), _read(folder / _RESULT)
    if not result:
        raise TutelageError(f"the run in {str(folder)!r} is not finished; the same command resumes it")
    return config, result


def _numbers(measured: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield every number of a result with its path, such as ``test.accuracy``, without lists and the configuration."""
    for name, value in measured.items():
        if isinstance(value, dict) and prefix + name not in ("data", "settings"):
            yield from _numbers(value, f"{prefix}{name}.")
        elif type(value) in (int, float) and prefix + name != "seed":
            yield prefix + name, value


# --- both


def _data_differences(a: Path, b: Path) -> dict[str, Both]:
    """Return the differences in data of two runs with equal configurations, as far as both recorded them."""
    first, second = _fingerprint(a), _fingerprint(b)
    results = [_read(folder / _RESULT) for folder in (a, b)]
    unequal = _unequal(_test_split(results[0]), _test_split(results[1])) if all(results) else {}
    if first and second and first != second:
        unequal["the training data's fingerprint"] = (first, second)
    return unequal


def _fingerprint(folder: Path) -> Any:
    """Return the first sixteen digits of the hash of the training split; ``None`` if it was not recorded."""
    saved = (_read(folder / _INPUTS) or {}).get("training data")
    return saved[:16] if isinstance(saved, str) else None


def _test_split(result: Mapping[str, Any] | None) -> dict[str, Any]:
    data = (result or {}).get("data")
    fields = data if isinstance(data, dict) else {}
    counts = fields.get("counts")
    return {
        "classes": fields.get("classes"),
        "image shape": fields.get("image_shape"),
        "test images a class": counts.get("test") if isinstance(counts, dict) else None,
    }


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = parse_json(read_file(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise TutelageError(f"{path} cannot be read: {one_line(error)}; run it again") from error
    if not isinstance(content, dict):
        raise TutelageError(f"{path} does not hold a table; run it again")
    return content


def _unequal(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Both]:
    return {name: (a.get(name), b.get(name)) for name in {**a, **b} if a.get(name) != b.get(name)}


def _refuse(a: Path, b: Path, unequal: Mapping[str, Both]) -> None:
    if unequal:
        message = "; ".join(
            f"{name} is {value_text(value_a)} in the first, {value_text(value_b)} in the second"
            for name, (value_a, value_b) in unequal.items()
        )
        raise TutelageError(f"{a} and {b} cannot be compared: {message}")
