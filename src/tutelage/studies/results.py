"""What a study measured: a record a run, and tables over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from tutelage.errors import TutelageError, unknown
from tutelage.files import as_path
from tutelage.studies import PLAIN, TEACHER
from tutelage.studies.comparison import Comparison, compare_rows
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
from tutelage.studies.statistics import average_ranks, critical_difference, friedman_p_value
from tutelage.tasks import Metric, Task

if TYPE_CHECKING:
    import pandas as pd


CellGroup = tuple[tuple[Any, ...], tuple[str, str]]
"""A condition and a pair: the rows of one table."""


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
class Row(Comparison):
    """A cell as a line of the table: its runs compared with the plain student of the same condition and pair.

    A cell with a run that failed or is missing has no mean and no gain: its table cell is empty, never a mean over
    fewer seeds. The plain student and the teacher have no gain.

    Attributes:
        cell: the runs behind it.
        metric: what its numbers are.
    """

    cell: Cell
    metric: Metric


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
        cells = self.cells
        groups: dict[CellGroup, dict[str, Mapping[int, float]]] = {}
        for cell in cells:
            values = cell.values(metric) or ()
            by_seed = dict(zip(self.study["seeds"], values, strict=False))
            groups.setdefault((cell.condition, cell.pair), {})[cell.method] = by_seed
        compared = {
            group: compare_rows(rows, PLAIN, better=about.better, interval=interval, excluded=(TEACHER,))
            for group, rows in groups.items()
        }
        return [
            Row(**vars(compared[cell.condition, cell.pair][cell.method]), cell=cell, metric=about) for cell in cells
        ]

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
