"""Runs a study: trains what is missing in its folder, in processes, and reads the results."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from tutelage.errors import TutelageError, TutelageWarning
from tutelage.files import LockedFolder, as_path, is_read_only, read_file
from tutelage.parsing import parse_json
from tutelage.runs.tracking import Trackers
from tutelage.signals import termination_signals_interrupt
from tutelage.studies.failures import failure_summary
from tutelage.studies.inspection import inspect
from tutelage.studies.jobs import Call, Outcome, Watch, run_jobs, warning_texts
from tutelage.studies.plan import Job, PlannedRun, Planner
from tutelage.studies.reading import CONDITION, RECORDS, cell_key
from tutelage.studies.records import Store
from tutelage.studies.results import Results
from tutelage.studies.study import Study
from tutelage.studies.tuning import choose, trials_of
from tutelage.studies.work import WorkItem, work
from tutelage.studies.workers import LocalWorkers, Workers, refuse_unguarded
from tutelage.tasks import Task
from tutelage.trust import Trust


def run_study(
    study: Study,
    out: str | Path,
    *,
    workers: Workers | None = None,
    watch: Watch | None = None,
    track: str | None = None,
    trust: Trust | None = None,
    check: bool = True,
) -> Results:
    """Train all runs of a study that are missing in its folder, and read the results.

    Each run has a folder in ``out/runs``, named by a hash of everything that its numbers depend on. A run that is
    complete there is not trained again, also if another study asks for it. A run that fails is tried once more; then
    its error is recorded in ``out/failures`` and the study continues without it. After an interruption, the same call
    resumes each run at its last complete epoch.

    In a script, call it under ``if __name__ == "__main__":``, since worker processes import the script.

    Args:
        study: the study to run.
        out: its folder.
        workers: where the runs are done; one process for each core of this machine unless given. They are stopped at
            the end.
        watch: called with the progress several times a second.
        track: trackers of every run, see ``train``.
        trust: whose code may be imported (``check_trusted``). Unless given, that of the networks and methods which the
            study names; code that only the file of a trained teacher names is not imported. ``True`` for all.
        check: warn if runs failed, and raise if all did. If ``False``, failures are only in the results.

    Raises:
        TutelageError: the study is invalid (raised before any training), its folder is in use or cannot be written to,
            or every run failed.
        KeyboardInterrupt: Ctrl-C, SIGTERM or SIGHUP; only unfinished epochs are lost.
    """
    refuse_unguarded()
    out = as_path(out)
    workers = workers or LocalWorkers()
    trust = study.code if trust is None else trust
    try:
        folder = LockedFolder(out, "study")
        with nullcontext() if is_read_only(out) else folder.locked(), termination_signals_interrupt():
            Trackers(track, out)  # refuses one that is unknown or not installed
            with warning_texts() as texts:
                inspection = inspect(study, trust)
            task = inspection.task
            other = dict.fromkeys(inspection.other, task.name)
            planner = Planner(study, out, inspection.fingerprints, inspection.teacher_free, other)
            store = Store(folder, study, task)
            if is_read_only(out):
                _check_finished(planner, store, task)
            else:
                store.begin()
                _run(planner, store, task, workers, watch, track, trust, texts)
    finally:
        workers.stop()
    results = Results.read(out)
    failure = failure_summary(results) if check else None
    if failure and len(results.failed) == len(results.runs):
        raise TutelageError(failure)
    if failure:
        warnings.warn(failure, TutelageWarning, stacklevel=2)
    return results


def _run(
    planner: Planner,
    store: Store,
    task: Task,
    workers: Workers,
    watch: Watch | None,
    track: str | None,
    trust: Trust | None,
    texts: set[str],
) -> None:
    """Run the trials of the tuning budget, then all runs with the settings that they selected.

    Warnings in ``texts`` are not repeated.
    """
    trials = trials_of(planner)
    lines = [trial.run for trial in trials]
    ledger = _StoreLedger(store, lines, track, trust)
    run_jobs([line.job for line in lines], ledger, workers, watch, unit="trials", texts=texts)
    chosen = choose(trials, store, task)
    lines = planner.planned_runs(chosen.settings)
    _note_changed_code(store, lines)
    run_jobs(
        [line.job for line in lines],
        _StoreLedger(store, lines, track, trust),
        workers,
        watch,
        on_change=_at_most_every(5.0, lambda: store.write(lines, chosen.trials)),
        texts=texts,
    )
    store.write(lines, chosen.trials)


def _check_finished(planner: Planner, store: Store, task: Task) -> None:
    """Check that a folder that cannot be written to holds all runs of the study.

    Raises:
        TutelageError: it is the folder of another study, or a run is missing.
    """
    trials = trials_of(planner)
    jobs = [job for trial in trials for job in (*trial.run.job.before, trial.run.job)]
    jobs += [line.job for line in planner.planned_runs(choose(trials, store, task).settings)]
    missing = {job.key for job in jobs if not store.is_complete(job)}
    if missing or not store.is_declared():
        lacks = f"lacks {len(missing)} runs of this study" if missing else "is that of another study"
        raise TutelageError(f"{store.path} cannot be written to and {lacks}; choose another folder")


def _at_most_every(seconds: float, act: Callable[[], None]) -> Callable[[], None]:
    """The function, except that calls soon after the last are ignored: writing a large study's results is slow."""
    last = -math.inf

    def call() -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            act()
            last = time.monotonic()

    return call


class _StoreLedger:
    """The ledger of a study's jobs: run folders, and records of failures.

    Args:
        store: of the study.
        lines: lines of the results, which describe their jobs.
        track: see ``run_study``.
        trust: see ``run_study``.
    """

    def __init__(self, store: Store, lines: Sequence[PlannedRun], track: str | None, trust: Trust | None) -> None:
        self.store, self.track, self.trust = store, track, trust
        self.check, self.is_complete = store.check, store.is_complete
        self._labels = {line.job.key: store.label(line) for line in reversed(lines)}

    def label(self, job: Job) -> str:
        return self._labels.get(job.key, job.name)

    def call(self, job: Job, done: Collection[str]) -> Call:
        references = {
            other.name: other.config for other in job.references if other.job is None or other.job.key in done
        }
        folder, extra = self.store.folder(job), self.store.evaluate
        return Call(work, (WorkItem(job.config, folder, references, job.task, extra, self.track, self.trust),))

    def share(self, job: Job, since: float) -> float | None:
        """By the epochs that the run has written."""
        epochs = self.store.epochs(job, since)
        return min(1.0, epochs / job.config.epochs) if epochs else None

    def record(self, job: Job, outcome: Outcome) -> None:
        """Record a failure, or remove the record of an earlier one; the run's numbers are in its folder."""
        if outcome.error is None:
            self.store.forget_failure(job.name)
        else:
            self.store.keep_failure(job, outcome.error, outcome.trace)


def _note_changed_code(store: Store, runs: Sequence[PlannedRun]) -> None:
    """Warn of runs that are trained again because the code of their method or network changed since the last call."""
    before: dict[Any, dict[str, Any]] = {}
    with suppress(OSError, ValueError, KeyError, TypeError):  # damaged records are replaced anyway
        for text in read_file(store.path / RECORDS).splitlines():
            record = parse_json(text)
            before[cell_key(record), record["seed"]] = record
    rows, files = dict[str, str](), dict[str, None]()
    for line in runs:
        cell = (line.case[: len(CONDITION)], line.case[len(CONDITION) :], line.row), line.seed
        record, code = before.get(cell, {}), line.job.code
        old = record["code"] if isinstance(record.get("code"), dict) else {}
        if record.get("key") in (None, line.job.key) or old == code:
            continue
        if record.get("status") == "done":
            rows[line.job.key] = line.row
            files |= {name: None for name in {**old, **code} if old.get(name) != code.get(name)}
        else:
            store.forget_failure(Path(str(record.get("folder"))).name)
    if rows:
        names = ", ".join(dict.fromkeys(rows.values()))
        warnings.warn(
            f"{', '.join(files)} changed after the numbers in {store.path} were made, or was not recorded with them; "
            f"{len(rows)} run{' is' if len(rows) == 1 else 's are'} trained again: {names}",
            TutelageWarning,
            stacklevel=4,
        )
