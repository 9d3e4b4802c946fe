"""Results of a study: one record per run, and tables over seeds."""

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
        method: the name of its row: ``plain``, ``teacher`` or a method.
        runs: one record per seed, in the order of the study's seeds.
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
        """The metric of every seed; ``None`` if a run is missing or did not measure it."""
        values = [run[metric] for run in self.runs]
        return None if None in values else tuple(float(value) for value in values)


@dataclass(frozen=True)
class Row(Comparison):
    """A line of the table: a cell compared with the plain student of the same condition and pair.

    If a run of the cell failed or is missing, it has no mean and no gain, rather than a mean over fewer seeds. The
    plain student and the teacher have no gain.

    Attributes:
        cell: the runs.
        metric: the metric that is compared.
    """

    cell: Cell
    metric: Metric


@dataclass(frozen=True)
class Ranks:
    """Methods ranked within blocks. A block is a condition with a pair of networks; its values are means over seeds.

    Attributes:
        metric: the metric by which methods are ranked.
        average: the mean rank of each method over the blocks, the best first; 1 is the best, ties share the mean rank.
        blocks: number of blocks.
        critical_difference: average ranks that differ by less do not differ significantly (Nemenyi's test at 5 %);
            ``None`` for fewer than two methods.
        p: p-value of Friedman's test that all methods are equal; ``None`` for fewer than three methods or two blocks.
        unranked: by name, the reason why a method with a missing value has no rank.
    """

    metric: str
    average: Mapping[str, float]
    blocks: int
    critical_difference: float | None
    p: float | None
    unranked: Mapping[str, str]


@dataclass(frozen=True)
class Results:
    """The records of a study.

    Attributes:
        folder: of the study.
        study: its declaration, the content of ``study.json``.
        runs: one record per run.
        trials: one record per trial of the tuning budget; empty without one.
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
        """The task of its networks."""
        return task_named(self.study)

    @cached_property
    def metrics(self) -> Mapping[str, Metric]:
        """The metrics of its records by name, the task's main metric first."""
        return metrics_of(self.task)

    def metric_name(self, metric: str | None) -> str:
        """Check the name of a metric; ``None`` is the task's main metric.

        Raises:
            TutelageError: there is no metric of this name; the message lists the names.
        """
        if metric is None:
            return self.task.main_metric
        if metric not in self.metrics:
            raise unknown("metric", metric, self.metrics)
        return metric

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The runs, grouped over seeds, in the order of the records."""
        groups: dict[CellKey, dict[int, Record]] = {}
        for run in self.runs:
            groups.setdefault(cell_key(run), {})[run["seed"]] = run
        return tuple(
            Cell(condition, pair, method, tuple(runs[seed] for seed in self.study["seeds"]))
            for (condition, pair, method), runs in groups.items()
        )

    @property
    def failed(self) -> list[Record]:
        """The runs that failed."""
        return [run for run in self.runs if run["status"] == "failed"]

    def table(self, metric: str | None = None, interval: str = "t") -> list[Row]:
        """Compare the cells with the plain student of their condition and pair; return one row per cell, in order.

        Args:
            metric: a name in ``metrics``; the task's main metric unless given.
            interval: ``t`` for Student's t interval, ``bootstrap`` for a bootstrap interval of 9,999 resamples. The
                p-values are those of the paired t-test in both cases.

        Raises:
            TutelageError: there is no such metric or interval.
        """
        metric = self.metric_name(metric)
        described = self.metrics[metric]
        cells = self.cells
        groups: dict[CellGroup, dict[str, Mapping[int, float]]] = {}
        for cell in cells:
            values = cell.values(metric) or ()
            by_seed = dict(zip(self.study["seeds"], values, strict=False))
            groups.setdefault((cell.condition, cell.pair), {})[cell.method] = by_seed
        compared = {
            group: compare_rows(rows, PLAIN, better=described.better, interval=interval, excluded=(TEACHER,))
            for group, rows in groups.items()
        }
        return [
            Row(**vars(compared[cell.condition, cell.pair][cell.method]), cell=cell, metric=described) for cell in cells
        ]

    def ranks(self, metric: str | None = None) -> Ranks:
        """Rank the plain student and the methods in each condition and pair by their means over seeds.

        A block in which no run measured the metric is skipped, for example memorised labels where none are wrong. A
        method without the metric in another block has no rank.

        Raises:
            TutelageError: the metric does not exist, neither direction of it is better, or no run measured it.
        """
        metric = self.metric_name(metric)
        better = self.metrics[metric].better
        if better is None:
            raise TutelageError(f"nothing can be ranked by {metric!r}: neither direction of it is better")
        blocks: dict[tuple[Any, ...], dict[str, Cell]] = {}
        for cell in self.cells:
            if cell.method != TEACHER:
                blocks.setdefault((cell.condition, cell.pair), {})[cell.method] = cell
        measured = {}
        for block, cells in blocks.items():
            done = [run for cell in cells.values() for run in cell.runs if run["status"] == "done"]
            if not done or any(run[metric] is not None for run in done):
                measured[block] = cells
        if not measured:
            raise TutelageError(f"no run of {self.folder} has {metric!r}; rank by another metric")
        unranked: dict[str, str] = {}
        for cells in measured.values():
            for name, cell in cells.items():
                if cell.values(metric) is None:
                    unranked.setdefault(name, f"{self.heading(cell.condition, cell.pair)}: {missing_reason(cell)}")
        names = [name for name in next(iter(measured.values())) if name not in unranked]
        # Rounded to six digits, so that float32 rounding errors in a run do not break a tie.
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
        """The records as a pandas table: one line for each student's run of each pair, and for each teacher's run.

        Numbers are float64, missing ones NaN. Columns of conditions have no missing values, so that grouping by them
        drops no lines: ``noise`` is a number, 0.0 for correct labels; if any noise of the study has a kind
        (``pair:0.4``), it is text. ``imbalance`` is "none" and ``per_class`` "all" for the full data. ``pair`` is
        "TEACHER → STUDENT"; for a teacher's run it is the name of the teacher, and the student is "".

        Raises:
            TutelageError: pandas is not installed.
        """
        return frame_of(self.runs, self.metrics)

    def label(self, condition: Sequence[Any]) -> str:
        """Describe a condition by the fields that vary over the study; by all fields if none varies."""
        varying = [axis for axis in CONDITION if len({run[axis] for run in self.runs}) > 1]
        values = dict(zip(CONDITION, condition, strict=True))
        return ", ".join(AXIS_WORDS[axis](values[axis]) for axis in varying) or describe_condition(condition)

    def heading(self, condition: Sequence[Any], pair: Sequence[str]) -> str:
        """The label of a condition, with the networks if the study has several pairs."""
        pairs = {tuple(run[name] for name in PAIR) for run in self.runs}
        return self.label(condition) + (f", {pair[0]} teaches {pair[1]}" if len(pairs) > 1 else "")


def describe_condition(condition: Sequence[Any]) -> str:
    """Describe a condition: the data, the label noise, and further fields that differ from the default."""
    values = dict(zip(CONDITION, condition, strict=True))
    axes = ["data", "noise", *(axis for axis in ("imbalance", "per_class") if values[axis] is not None)]
    axes += ["teacher_labels"] if values["teacher_labels"] != "noisy" else []
    return ", ".join(AXIS_WORDS[axis](values[axis]) for axis in axes)


def is_study(folder: Path) -> bool:
    """Whether a folder is that of a study."""
    return (folder / STUDY).is_file()


def missing_reason(cell: Cell) -> str:
    """Why a cell has no value: the seeds that failed or are missing, or that the metric was not measured."""
    seeds = [f"seed {run['seed']} {'failed' if run['status'] == 'failed' else 'is missing'}" for run in cell.incomplete]
    return ", ".join(seeds) or "not measured"
