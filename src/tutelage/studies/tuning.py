"""The same number of trials of its own parameters for every method, judged on held-out training data."""

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
"""How far the search goes from a positive default, as a factor."""


@dataclass(frozen=True)
class Range:
    """Where a parameter is searched for: ``choices``, or a stretch, on a logarithmic scale where it is all above 0."""

    low: float = 0.0
    high: float = 0.0
    choices: tuple[Any, ...] = ()
    log: bool = False
    whole: bool = False

    @property
    def words(self) -> str:
        """Where that is, in words."""
        if self.choices:
            return f"one of {', '.join(map(str, self.choices))}"
        kind = "a whole number " if self.whole else ""
        return f"{kind}from {self.low:g} to {self.high:g}{' on a logarithmic scale' if self.log else ''}"

    def at(self, place: float) -> Any:
        """The value at a place in [0, 1)."""
        if self.choices:
            return self.choices[int(place * len(self.choices))]
        if self.whole:
            return int(self.low + place * (self.high - self.low + 1))
        value = (
            math.exp(math.log(self.low) + place * math.log(self.high / self.low))
            if self.log
            else self.low + place * (self.high - self.low)
        )
        return float(f"{value:.4g}")


@dataclass(frozen=True)
class Trial:
    """Settings to try for a row in a case, and where they were looked for."""

    run: PlannedRun
    settings: dict[str, Any]
    space: dict[str, Range]


@dataclass(frozen=True)
class Chosen:
    """The best settings by case and row, and the record of every trial."""

    settings: Mapping[tuple[Case, str], Mapping[str, Any]]
    trials: tuple[dict[str, Any], ...]


def space(planner: Planner, row: str) -> dict[str, Range]:
    """Where a row's parameters are searched for: as the study says, or around the defaults.

    A share (0 to 1) goes from 0.1 to 0.9, a positive number from a quarter of its default to four times it, a choice
    over its choices. What the row itself sets, what is switched off by default (0 or none) and whole numbers stay as
    they are unless the study's ``search`` names them.

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
            raise TutelageError(f"row {row!r} sets {name!r} and the study searches for it; say one of the two")
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
            raise TutelageError(f"search.{row}.{name} goes from {low} to {high}; give it [low, high], or choices")
        whole = isinstance(low, int) and isinstance(high, int)
        return Range(low, high, log=low > 0 and not whole, whole=whole)
    if not values:
        raise TutelageError(f"search.{row}.{name} is empty; give it [low, high], or choices")
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
    """What to try: for each case and row first the settings as they stand, then points of a Halton sequence.

    They are trained with a seed of their own, the one after the study's largest, under that seed's teacher. A row with
    nothing to search for has no trials.
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
        tried: list[dict[str, Any]] = [{}]
        tried += [{name: one.at(place) for (name, one), place in zip(ranges.items(), p, strict=True)} for p in points]
        for case in planner.cases:
            trials += [Trial(planner.line(case, row, seed, each), each, ranges) for each in tried]
    return trials


def choose(trials: Sequence[Trial], store: Store, task: Task) -> Chosen:
    """The settings that did best on held-out training data after the last epoch; the first of equals.

    Best is by the task's main metric. A trial that failed is out of the running; where all of them failed, the row
    keeps its own settings.
    """
    records = []
    best: dict[tuple[Case, str], int] = {}
    for number, trial in enumerate(trials):
        record = store.record(trial.run)
        curve = record["curve"] or {}
        values = [value for value in curve.get(f"validation_{task.main_metric}", []) if value is not None]
        searched = {name: one.words for name, one in trial.space.items()}
        score = values[-1] if values else None
        records.append(record | {"space": searched, "score": score, "chosen": False})
        place = (trial.run.case, trial.run.row)
        if score is not None and task.improves(score, records[best[place]]["score"] if place in best else None):
            best[place] = number
    for number in best.values():
        records[number]["chosen"] = True
    return Chosen({place: trials[number].settings for place, number in best.items()}, tuple(records))
