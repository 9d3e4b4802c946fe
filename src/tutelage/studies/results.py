"""What a study measured: a record a run, and tables over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from tutelage.errors import TutelageError, unknown
from tutelage.files import as_path
from tutelage.studies import PLAIN, TEACHER
from tutelage.studies.frame import frame_of
from tutelage.studies.metrics import metrics_of
from tutelage.studies.reading import (
    AXIS_WORDS,
    CONDITION,
    PAIR,
    RECORDS,
    STUDY,
    TRIALS,
    CellKey,
    Record,
    cell_key,
    read_records,
    read_study_file,
    refuse_gaps,
    task_named,
)
from tutelage.studies.statistics import (
    Interval,
    average_ranks,
    bootstrap_difference,
    bootstrap_interval,
    critical_difference,
    friedman_p_value,
    holm,
    mean_interval,
    paired_difference,
    paired_p_value,
    wins,
)
from tutelage.tasks import Metric, Task

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Cell:
    """One method on one pair of networks under one condition, over the study's seeds.

    Attributes:
        condition: the fields of ``CONDITION``.
        pair: the fields of ``PAIR``.
        method: its row's name; ``plain``, ``teacher`` or a method's.
        runs: a record a seed, in the order of the study's seeds.
    """

    condition: tuple[Any, ...]
    pair: tuple[str, str]
    method: str
    runs: tuple[Record, ...]

    @property
    def incomplete(self) -> tuple[Record, ...]:
        """The runs that failed or are missing."""
        return tuple(run for run in self.runs if run["status"] != "done")

    def values(self, metric: str) -> tuple[float, ...] | None:
        """The number of every seed; ``None`` where one is missing or was not measured."""
        found = [run[metric] for run in self.runs]
        return None if None in found else tuple(float(value) for value in found)


@dataclass(frozen=True)
class Row:
    """A cell as a line of the table.

    Attributes:
        cell: the runs behind it.
        metric: what its numbers are.
        mean: over all seeds; ``None`` where a run is missing: never a mean over fewer seeds. Also
            ``None`` where the metric was not measured.
        deviation: standard deviation over seeds (n - 1); ``None`` of one seed.
        gain: paired difference to the plain student of the same condition and pair; ``None`` for the plain student and
            the teacher, and where a run of either is missing. Always method - plain, also where lower is better.
        p: two-sided p-value of the gain by the paired t-test, unadjusted, whichever interval is shown; ``None`` of one
            seed. ``holm``: adjusted for the methods of the same condition and pair that have one.
        wins: on how many seeds it is better than the plain student, ties counting half; ``None`` where neither end of
            the metric is the better one.
    """

    cell: Cell
    metric: Metric
    mean: Interval | None
    deviation: float | None
    gain: Interval | None
    p: float | None
    holm: float | None
    wins: float | None


@dataclass(frozen=True)
class Ranks:
    """Methods ranked within blocks. A block is a condition with a pair of networks; its values are means over seeds.

    Attributes:
        metric: what they are ranked by.
        average: the mean rank of each method over the blocks, the best first; 1 is the best, ties share their ranks.
        blocks: how many.
        critical_difference: average ranks that lie less apart do not differ (Nemenyi at 5 %); ``None`` for fewer than
            two methods.
        p: Friedman's test that all methods are alike; ``None`` for fewer than three methods or two blocks.
        unranked: methods with a missing value have no rank; the reason by name.
    """

    metric: str
    average: Mapping[str, float]
    blocks: int
    critical_difference: float | None
    p: float | None
    unranked: Mapping[str, str]


@dataclass(frozen=True)
class Results:
    """All of a study.

    Attributes:
        folder: where it is.
        study: its declaration, as ``study.json`` holds it.
        runs: the records.
        trials: the records of what was tried under a tuning budget; empty without one.
    """

    folder: Path
    study: Mapping[str, Any]
    runs: tuple[Record, ...]
    trials: tuple[Record, ...] = ()

    @classmethod
    def read(cls, folder: str | Path) -> Results:
        """Read a study's folder.

        Raises:
            TutelageError: there is no such folder, no study in it, or a file of it is damaged or of another version.
        """
        folder = as_path(folder)
        if not folder.is_dir():
            raise TutelageError(f"there is no folder {str(folder)!r}; name the one that tutelage study wrote")
        if not is_study(folder):
            raise TutelageError(f"{str(folder)!r} holds no study, it has no {STUDY}; name what tutelage study wrote")
        if not (folder / RECORDS).is_file():
            raise TutelageError(f"the study in {str(folder)!r} has no {RECORDS} yet; run it with tutelage study")
        study = read_study_file(folder / STUDY)
        task = task_named(study)
        runs = read_records(folder / RECORDS, task)
        if not runs:
            raise TutelageError(f"{folder / RECORDS} holds no run; run the study again")
        refuse_gaps(folder / RECORDS, study, runs)
        trials = folder / TRIALS
        return cls(
            folder,
            study,
            runs,
            read_records(trials, task, ("space", "score", "chosen")) if trials.is_file() else (),
        )

    @cached_property
    def task(self) -> Task:
        """What its networks were trained for."""
        return task_named(self.study)

    @cached_property
    def metrics(self) -> Mapping[str, Metric]:
        """The numbers of its records, the task's main metric first."""
        return metrics_of(self.task)

    def metric_name(self, metric: str | None) -> str:
        """The name of a metric, the task's main one for ``None``.

        Raises:
            TutelageError: there is no metric of this name; the known ones are listed.
        """
        if metric is None:
            return self.task.main_metric
        if metric not in self.metrics:
            raise unknown("metric", metric, self.metrics)
        return metric

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The runs, put together over seeds, in the order of the store."""
        found: dict[CellKey, dict[int, Record]] = {}
        for run in self.runs:
            found.setdefault(cell_key(run), {})[run["seed"]] = run
        return tuple(
            Cell(condition, pair, method, tuple(runs[seed] for seed in self.study["seeds"]))
            for (condition, pair, method), runs in found.items()
        )

    @property
    def failed(self) -> list[Record]:
        """The runs that failed."""
        return [run for run in self.runs if run["status"] == "failed"]

    def table(self, metric: str | None = None, interval: str = "t") -> list[Row]:
        """A row a cell, in their order.

        Args:
            metric: a name of ``metrics``; the task's main metric unless given.
            interval: ``t``, Student's, or ``bootstrap``, of 9,999 resamples. The p-values are the paired t-test's
                either way.

        Raises:
            TutelageError: for a metric or an interval that does not exist.
        """
        metric = self.metric_name(metric)
        about = self.metrics[metric]
        if interval not in ("t", "bootstrap"):
            raise unknown("interval", interval, ("t", "bootstrap"))
        of_mean, of_gain = (
            (mean_interval, paired_difference) if interval == "t" else (bootstrap_interval, bootstrap_difference)
        )
        cells = self.cells
        plain = {(cell.condition, cell.pair): cell.values(metric) for cell in cells if cell.method == PLAIN}
        rows = []
        for cell in cells:
            own, other = cell.values(metric), plain.get((cell.condition, cell.pair))
            gain = p = won = None
            if own is not None and other is not None and cell.method not in (TEACHER, PLAIN):
                gain = of_gain(own, other)
                p = paired_p_value(own, other) if len(own) > 1 else None
                won = wins(own, other, higher_is_better=about.better == "higher") if about.better else None
            mean = of_mean(own) if own is not None else None
            spread = stdev(own) if own is not None and len(own) > 1 else None
            rows.append(Row(cell, about, mean, spread, gain, p, None, won))
        return _corrected(rows)

    def ranks(self, metric: str | None = None) -> Ranks:
        """The plain student and the methods, ranked in each condition and pair by their means over seeds.

        A block in which nobody has the metric, such as memorised labels where none are wrong, is none. A method that
        lacks it in one of the others has no rank: a block is never left out for it.

        Raises:
            TutelageError: for a metric that does not exist, or has no better end, or that nobody has.
        """
        metric = self.metric_name(metric)
        better = self.metrics[metric].better
        if better is None:
            raise TutelageError(f"nothing can be ranked by {metric!r}: neither end of it is the better one")
        blocks: dict[tuple[Any, ...], dict[str, Cell]] = {}
        for cell in self.cells:
            if cell.method != TEACHER:
                blocks.setdefault((cell.condition, cell.pair), {})[cell.method] = cell
        measured = {}
        for place, cells in blocks.items():
            done = [run for cell in cells.values() for run in cell.runs if run["status"] == "done"]
            if not done or any(run[metric] is not None for run in done):
                measured[place] = cells
        if not measured:
            raise TutelageError(f"no run of {self.folder} has {metric!r}; rank by another metric")
        unranked: dict[str, str] = {}
        for cells in measured.values():
            for name, cell in cells.items():
                if cell.values(metric) is None:
                    unranked.setdefault(name, f"{self.heading(cell.condition, cell.pair)}: {missing_reason(cell)}")
        names = [name for name in next(iter(measured.values())) if name not in unranked]
        # Six digits: what float32 rounds away in a run must not break a tie.
        values = [
            [float(f"{fmean(cells[name].values(metric) or ()):.6g}") for name in names] for cells in measured.values()
        ]
        ranks = average_ranks(values, higher_is_better=better == "higher") if names else []
        return Ranks(
            metric=metric,
            average=dict(sorted(zip(names, ranks, strict=True), key=lambda entry: entry[1])),
            blocks=len(values),
            critical_difference=critical_difference(len(names), len(values)) if len(names) > 1 else None,
            p=friedman_p_value(values) if len(names) > 2 and len(values) > 1 else None,
            unranked=unranked,
        )

    def frame(self) -> pd.DataFrame:
        """The records as a table of pandas: a line a student's run for each pair, and one a teacher's run.

        Numbers are float64, and NaN where there are none. The columns of the conditions have no gaps, so that grouping
        by them drops nothing: ``noise`` is a number, 0.0 for correct labels, unless a noise of the study has a kind
        (``pair:0.4``), where all are texts; ``imbalance`` is "none" and ``per_class`` "all" where nothing is left out.
        ``pair`` is "TEACHER → STUDENT", and a teacher's line has its own name there and no student ("").

        Raises:
            TutelageError: without pandas.
        """
        return frame_of(self.runs, self.metrics)

    def label(self, condition: Sequence[Any]) -> str:
        """A condition in words, by what varies over the study; all of it where nothing does."""
        varying = [axis for axis in CONDITION if len({run[axis] for run in self.runs}) > 1]
        values = dict(zip(CONDITION, condition, strict=True))
        return ", ".join(AXIS_WORDS[axis](values[axis]) for axis in varying) or describe_condition(condition)

    def heading(self, condition: Sequence[Any], pair: Sequence[str]) -> str:
        """The label of a condition, and the networks where the study has several pairs."""
        pairs = {tuple(run[name] for name in PAIR) for run in self.runs}
        return self.label(condition) + (f", {pair[0]} teaches {pair[1]}" if len(pairs) > 1 else "")


def describe_condition(condition: Sequence[Any]) -> str:
    """All of a condition in words: the data, their labels, and what else is not as usual."""
    values = dict(zip(CONDITION, condition, strict=True))
    said = ["data", "noise", *(axis for axis in ("imbalance", "per_class") if values[axis] is not None)]
    said += ["teacher_labels"] if values["teacher_labels"] != "noisy" else []
    return ", ".join(AXIS_WORDS[axis](values[axis]) for axis in said)


def is_study(folder: Path) -> bool:
    """Whether a study is kept in a folder."""
    return (folder / STUDY).is_file()


def missing_reason(cell: Cell) -> str:
    """Why a cell has no number: which seeds failed or are missing; or that it was not measured."""
    seeds = [f"seed {run['seed']} {'failed' if run['status'] == 'failed' else 'is missing'}" for run in cell.incomplete]
    return ", ".join(seeds) or "not measured"


def _corrected(rows: Sequence[Row]) -> list[Row]:
    """With Holm's correction over the methods of the same condition and pair."""
    families: dict[tuple[Any, ...], list[int]] = {}
    for number, row in enumerate(rows):
        if row.p is not None:
            families.setdefault((row.cell.condition, row.cell.pair), []).append(number)
    corrected = list(rows)
    for family in families.values():
        for number, p in zip(family, holm([rows[n].p or 0.0 for n in family]), strict=True):
            corrected[number] = replace(rows[number], holm=p)
    return corrected
