"""Studies whose rows are measured by a function of a condition, a row and a seed."""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tutelage.errors import TutelageError
from tutelage.studies.comparison import Comparison, compare_rows
from tutelage.studies.jobs import Call, Outcome, Watch, run_jobs
from tutelage.studies.workers import InlineWorkers, Workers

Measure = Callable[[str, str, int, Path], Mapping[str, float]]
"""A function from (condition, row, seed, folder) to metrics by name, NaN for one that was not measured.

The folder is for the files of this run alone; it may not exist yet."""


@dataclass(frozen=True)
class FunctionRun:
    """A job: one call of a study's function. It depends on no other run."""

    condition: str
    row: str
    seed: int

    @property
    def name(self) -> str:
        """The run in words."""
        return f"{self.condition} · {self.row} · seed {self.seed}"

    @property
    def key(self) -> str:
        """Its name, which no other run of the study has."""
        return self.name

    @property
    def before(self) -> tuple[FunctionRun, ...]:
        """No runs."""
        return ()

    @property
    def needs(self) -> None:
        """No run."""
        return


@dataclass(frozen=True)
class FunctionStudy:
    """Rows that are compared with a baseline, seed by seed, under one condition or several.

    Attributes:
        name: of the study, and of the folder of its runs.
        measure: measures one run. Its random numbers must depend on the seed alone, so that rows of one seed share
            data, initial weights and batches.
        rows: names of the methods or settings that are compared.
        baseline: the row that the others are compared with.
        conditions: headings of the tables by name of the condition. All runs of one condition end before those of the
            next begin.
        seeds: the number of seeds; or the seeds of each condition.
        skip: (condition, row) pairs that are not run.
    """

    name: str
    measure: Measure
    rows: Sequence[str]
    baseline: str
    conditions: Mapping[str, str] = field(default_factory=lambda: {"all": ""})
    seeds: int | Mapping[str, Sequence[int]] = 3
    skip: frozenset[tuple[str, str]] = frozenset()

    def seeds_of(self, condition: str) -> Sequence[int]:
        """The seeds of a condition."""
        return range(self.seeds) if isinstance(self.seeds, int) else self.seeds[condition]

    def runs(self) -> list[FunctionRun]:
        """All runs, in the order in which they are done."""
        return [
            FunctionRun(condition, row, seed)
            for condition in self.conditions
            for seed in self.seeds_of(condition)
            for row in self.rows
            if (condition, row) not in self.skip
        ]

    def provenance(self, run: FunctionRun) -> dict[str, Any]:
        """How the numbers of a run were made, as further fields of its line in the results file."""
        return {"versions": {"python": platform.python_version(), "torch": torch.__version__}}


def run_function_study(
    study: FunctionStudy,
    file: Path,
    *,
    only: Collection[FunctionRun] | None = None,
    folder: Path = Path("runs"),
    workers: Workers | None = None,
    watch: Watch | None = None,
) -> None:
    """Do the runs that have no line in the results file, and append a line for each.

    Several processes may do different runs of one study at the same time. A run that fails is tried once more; it gets
    no line, so that the next call tries it again.

    Args:
        study: what to run.
        file: the results, one JSON object a line: ``condition``, ``row``, ``seed``, ``measured`` (metrics by name),
            ``seconds``, and what ``FunctionStudy.provenance`` adds.
        only: the runs to do; all unless given.
        folder: the folder of the runs' folders, ``NAME/CONDITION/ROW-SEED``.
        workers: where the runs are done; in this process unless given. They are stopped at the end. Worker processes
            need a function that can be pickled.
        watch: called with the progress several times a second.

    Raises:
        TutelageError: runs of a condition failed; the other runs of this condition are done, later conditions are
            not begun.
    """
    workers = workers or InlineWorkers()
    runs = [run for run in study.runs() if only is None or run in only]
    try:
        for condition in study.conditions:
            jobs = [run for run in runs if run.condition == condition]
            errors = run_jobs(jobs, _Lines(study, file, folder), workers, watch)
            if errors:
                key, error = next(iter(errors.items()))
                raise TutelageError(f"{len(errors)} of {len(jobs)} runs of {study.name} failed; {key}: {error}")
    finally:
        workers.stop()


def missing_runs(study: FunctionStudy, file: Path) -> list[FunctionRun]:
    """The runs that have no line in the results file, in the order in which they are done."""
    complete = {FunctionRun(line["condition"], line["row"], line["seed"]) for line in read_lines(file)}
    return [run for run in study.runs() if run not in complete]


def values_of(study: FunctionStudy, file: Path, condition: str, metric: str) -> dict[str, dict[int, float]]:
    """A metric's values under a condition, by row and seed; runs that did not measure it are left out."""
    values: dict[str, dict[int, float]] = {row: {} for row in study.rows if (condition, row) not in study.skip}
    for line in read_lines(file):
        value = line["measured"].get(metric)
        if line["condition"] == condition and line["row"] in values and value is not None:
            values[line["row"]][line["seed"]] = value
    return values


def compare(study: FunctionStudy, file: Path, condition: str, metric: str) -> dict[str, Comparison]:
    """The rows of a condition compared with the baseline by a metric."""
    return compare_rows(values_of(study, file, condition, metric), study.baseline)


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The lines of a results file, in their order; none if there is no file."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def append_line(file: Path, line: Mapping[str, Any]) -> None:
    """Append a line in a single write, so that lines of several processes are not interleaved."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab", buffering=0) as stream:
        stream.write(f"{json.dumps(line)}\n".encode())


class _Lines:
    """The ledger of a function study."""

    def __init__(self, study: FunctionStudy, file: Path, folder: Path) -> None:
        self.study, self.file, self.folder = study, file, folder
        self.missing = set(missing_runs(study, file))

    def check(self) -> None:
        """Do nothing: if the file cannot be written, ``record`` raises."""

    def is_complete(self, run: FunctionRun) -> bool:
        return run not in self.missing

    def label(self, run: FunctionRun) -> str:
        return run.name

    def call(self, run: FunctionRun, done: Collection[str]) -> Call:
        folder = self.folder / self.study.name / run.condition / f"{run.row}-{run.seed}".replace(" ", "-")
        return Call(_timed, (partial(self.study.measure, run.condition, run.row, run.seed, folder),))

    def share(self, run: FunctionRun, since: float) -> float:
        """0, since the progress of a function is not known."""
        return 0.0

    def record(self, run: FunctionRun, outcome: Outcome) -> None:
        """Append the line of a run that succeeded."""
        if outcome.error is not None:
            return
        numbers, seconds = outcome.value
        line = {
            **asdict(run),
            "measured": {name: None if math.isnan(value) else float(value) for name, value in numbers.items()},
            "seconds": round(seconds, 1),
            **self.study.provenance(run),
        }
        append_line(self.file, line)


def _timed(measure: Callable[[], Mapping[str, float]]) -> tuple[dict[str, float], float]:
    """Measure a run in a worker; return its numbers and the seconds that it took."""
    start = time.perf_counter()
    return dict(measure()), time.perf_counter() - start
