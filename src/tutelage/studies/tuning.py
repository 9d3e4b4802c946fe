"""Tuning: each method gets the same number of trials, evaluated on held-out training data."""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from annotated_types import Ge, Gt, Le
from pydantic.fields import FieldInfo

from tutelage.errors import TutelageError, unknown
from tutelage.methods import find
from tutelage.studies import PLAIN
from tutelage.studies.plan import Case, PlannedRun, Planner
from tutelage.studies.records import Store
from tutelage.tasks import Task

AROUND = 4.0
"""The factor between a positive default and the bounds of its range."""


@dataclass(frozen=True)
class Range:
    """The search range of a parameter: ``choices``, or an interval, on a logarithmic scale if ``log`` is set."""

    low: float = 0.0
    high: float = 0.0
    choices: tuple[Any, ...] = ()
    log: bool = False
    whole: bool = False

    @property
    def words(self) -> str:
        """The description of the range."""
        if self.choices:
            return f"one of {', '.join(map(str, self.choices))}"
        kind = "a whole number " if self.whole else ""
        return f"{kind}from {self.low:g} to {self.high:g}{' on a logarithmic scale' if self.log else ''}"

    def at(self, fraction: float) -> Any:
        """Return the value at a fraction of the range, in [0, 1)."""
        if self.choices:
            return self.choices[int(fraction * len(self.choices))]
        if self.whole:
            return int(self.low + fraction * (self.high - self.low + 1))
        value = (
            math.exp(math.log(self.low) + fraction * math.log(self.high / self.low))
            if self.log
            else self.low + fraction * (self.high - self.low)
        )
        return float(f"{value:.4g}")


@dataclass(frozen=True)
class Trial:
    """Settings to try for a row in a case, and the ranges they are from."""

    run: PlannedRun
    settings: dict[str, Any]
    space: dict[str, Range]


@dataclass(frozen=True)
class Chosen:
    """The best settings by case and row, and the record of every trial."""

    settings: Mapping[tuple[Case, str], Mapping[str, Any]]
    trials: tuple[dict[str, Any], ...]


def space(planner: Planner, row: str) -> dict[str, Range]:
    """Return the search ranges of a row's parameters: those of the study, or defaults.

    Default ranges: 0.1 to 0.9 for a parameter from 0 to 1, a quarter of its default to four times its default for a
    positive number, all choices for a choice. Parameters that the row sets, that are off by default (0 or none) or
    that are integers are not searched unless the study's ``search`` names them.

    Raises:
        TutelageError: the study names a parameter that the method does not have, or a range that is none.
    """
    variant = planner.study.methods[row]
    fields = find(variant.method).settings.model_fields
    requested = planner.study.search.get(row, {})
    for name in requested:
        if name not in fields:
            raise unknown(f"parameter of {variant.method} to search for", name, fields)
        if name in variant.settings:
            raise TutelageError(f"row {row!r} sets {name!r} and search.{row} names it too; remove one of the two")
    ranges = {name: _searched_range(row, name, values) for name, values in requested.items()}
    for name, field in fields.items():
        if name not in requested and name not in variant.settings and (default := _default_range(field)):
            ranges[name] = default
    return ranges


def _searched_range(row: str, name: str, values: tuple[Any, ...]) -> Range:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if len(values) == 2 and numbers:
        low, high = values
        if not low < high:
            raise TutelageError(f"search.{row}.{name} is [{low}, {high}]; low must be less than high")
        whole = isinstance(low, int) and isinstance(high, int)
        return Range(low, high, log=low > 0 and not whole, whole=whole)
    if not values:
        raise TutelageError(f"search.{row}.{name} is empty; set it to [low, high], or to choices")
    return Range(choices=values)


def _default_range(field: FieldInfo) -> Range | None:
    choices = typing.get_args(field.annotation) if typing.get_origin(field.annotation) is typing.Literal else ()
    if choices:
        return Range(choices=choices)
    if field.annotation is not float or not field.default:
        return None
    low = next((bound.ge for bound in field.metadata if isinstance(bound, Ge)), None)
    high = next((bound.le for bound in field.metadata if isinstance(bound, Le)), None)
    if (low, high) == (0, 1):
        return Range(0.1, 0.9)
    positive = low == 0 or any(isinstance(bound, Gt) and bound.gt == 0 for bound in field.metadata)
    return Range(field.default / AROUND, field.default * AROUND, log=True) if positive else None


def trials_of(planner: Planner) -> list[Trial]:
    """Return the trials: for each case and row first the unchanged settings, then points of a Halton sequence.

    They are trained with the seed after the study's largest, with that seed's teacher. A row without search ranges has
    no trials.
    """
    from scipy.stats import qmc

    study = planner.study
    if not study.budget:
        return []
    seed = max(study.seeds) + 1
    trials = []
    for row in study.methods:
        ranges = space(planner, row) if row != PLAIN else {}
        if not ranges:
            continue
        points = qmc.Halton(len(ranges), scramble=True, rng=0).random(study.budget - 1)
        candidates: list[dict[str, Any]] = [{}]
        candidates += [{name: r.at(x) for (name, r), x in zip(ranges.items(), point, strict=True)} for point in points]
        for case in planner.cases:
            trials += [Trial(planner.line(case, row, seed, settings), settings, ranges) for settings in candidates]
    return trials


def choose(trials: Sequence[Trial], store: Store, task: Task) -> Chosen:
    """Return the settings with the best main metric on held-out training data after the last epoch.

    Of equal trials the first is chosen. Failed trials are ignored; if all failed, the row's own settings remain.
    """
    records = []
    best: dict[tuple[Case, str], int] = {}
    for number, trial in enumerate(trials):
        record = store.record(trial.run)
        curve = record["curve"] or {}
        values = [value for value in curve.get(f"validation_{task.main_metric}", []) if value is not None]
        searched = {name: r.words for name, r in trial.space.items()}
        score = values[-1] if values else None
        records.append(record | {"space": searched, "score": score, "chosen": False})
        cell = (trial.run.case, trial.run.row)
        if score is not None and task.improves(score, records[best[cell]]["score"] if cell in best else None):
            best[cell] = number
    for number in best.values():
        records[number]["chosen"] = True
    return Chosen({cell: trials[number].settings for cell, number in best.items()}, tuple(records))
