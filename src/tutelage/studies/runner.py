"""Do the runs of a study that are not done yet, in processes."""

from __future__ import annotations

import math
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tutelage.errors import TutelageError, TutelageWarning, one_line
from tutelage.files import LockedFolder, as_path, is_read_only, read_file
from tutelage.parsing import parse_json
from tutelage.runs.tracking import Trackers
from tutelage.signals import termination_signals_interrupt
from tutelage.studies.failures import failure_summary
from tutelage.studies.inspection import inspect
from tutelage.studies.plan import Asked, Job, Planner
from tutelage.studies.reading import CONDITION, RECORDS, cell_key
from tutelage.studies.records import Store
from tutelage.studies.results import Results
from tutelage.studies.study import Study
from tutelage.studies.tuning import choose, trials_of
from tutelage.studies.work import Outcome, Piece, work
from tutelage.studies.workers import LocalWorkers, Workers, refuse_unguarded
from tutelage.tasks import Task
from tutelage.trust import Trust

ATTEMPTS = 2


class AtWork(NamedTuple):
    """A run that is being trained: its folder's name, what it is in words, and the share of it that is done."""

    name: str
    label: str
    share: float


@dataclass(frozen=True)
class Status:
    """How far a study is.

    Attributes:
        runs: how many there are in all; ``done`` and ``failed`` of them are over.
        found: how many of the done ones were there before.
        running: those at work.
        what: what is counted: ``runs``, or the ``trials`` of a budget.
    """

    runs: int
    done: int
    failed: int
    found: int
    running: tuple[AtWork, ...]
    what: str = "runs"

    @property
    def share(self) -> float:
        """Of all runs, those at work counting in part: in [0, 1]."""
        return (self.done + self.failed + sum(each.share for each in self.running)) / max(1, self.runs)


Watch = Callable[[Status], None]


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
    """Train everything that a study asks for and that is not there yet, and read all of it.

    Every run has a folder below ``out/runs``, named after all that its numbers depend on: asked again, also by another
    study in the same folder, it is read and not done again. A run that fails is tried once more, then its error is
    kept and the study goes on without it; a warning counts those that failed. Stopped or killed, it goes on where it
    was, each run at its last epoch.

    Started from a script, the call belongs under ``if __name__ == "__main__":``, since workers import the script.

    Args:
        study: what to do.
        out: the study's folder.
        workers: where; processes of this machine, one a core, unless given. They are stopped in the end.
        watch: told several times a second how far it is.
        track: trackers of every run, see ``train``.
        trust: whose code may be imported (``check_trusted``): unless given, that of the networks and methods which the
            study names, and none that only the file of a trained teacher names. ``True`` for all.
        check: whether failed runs are a warning, and an error if all failed; otherwise the results alone tell of them.

    Raises:
        TutelageError: the study names something that cannot work (before anything is trained), the folder is in use or
            cannot be written; or every run failed.
        KeyboardInterrupt: Ctrl-C, SIGTERM or SIGHUP; nothing but the epochs at work is lost.
    """
    refuse_unguarded()
    out = as_path(out)
    place = workers or LocalWorkers()
    trust = study.code if trust is None else trust
    try:
        folder = LockedFolder(out, "study")
        with nullcontext() if is_read_only(out) else folder.locked(), termination_signals_interrupt():
            Trackers(track, out)  # refuses one that is unknown or not installed
            inspection = inspect(study, trust)
            task = inspection.task
            other = dict.fromkeys(inspection.other, task.name)
            planner = Planner(study, out, inspection.fingerprints, inspection.teacher_free, other)
            store = Store(folder, study, task)
            if is_read_only(out):
                _check_finished(planner, store, task)
            else:
                store.begin()
                _do(planner, store, task, _Runner(store, place, watch, track, trust))
    finally:
        place.stop()
    results = Results.read(out)
    failure = failure_summary(results) if check else None
    if failure and len(results.failed) == len(results.runs):
        raise TutelageError(failure)
    if failure:
        warnings.warn(failure, TutelageWarning, stacklevel=2)
    return results


def _do(planner: Planner, store: Store, task: Task, runner: _Runner) -> None:
    """The trials, then the runs with what was chosen."""
    tried = trials_of(planner)
    runner.do([trial.asked for trial in tried], "trials")
    chosen = choose(tried, store, task)
    asked = planner.asked(chosen.settings)
    _note_changed_code(store, asked)
    runner.do(asked, tell=_now_and_then(lambda: store.write(asked, chosen.trials)))
    store.write(asked, chosen.trials)


def _check_finished(planner: Planner, store: Store, task: Task) -> None:
    """Refuse a study whose folder cannot be written to, unless all of it is there.

    Raises:
        TutelageError: it is not the folder of this study, or a run is missing.
    """
    tried = trials_of(planner)
    jobs = [each for trial in tried for each in (*trial.asked.job.before, trial.asked.job)]
    jobs += [line.job for line in planner.asked(choose(tried, store, task).settings)]
    missing = {job.key for job in jobs if not store.is_complete(job)}
    if missing or not store.is_declared():
        lacks = f"lacks {len(missing)} runs of this study" if missing else "is that of another study"
        raise TutelageError(f"{store.path} cannot be written to and {lacks}; choose another folder")


def _now_and_then(act: Callable[[], None], seconds: float = 5.0) -> Callable[[], None]:
    """The same, but not more often than this: a large study's results take a while to write."""
    last = -math.inf

    def call() -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            act()
            last = time.monotonic()

    return call


class _Runner:
    def __init__(self, store: Store, workers: Workers, watch: Watch | None, track: str | None, trust: Trust) -> None:
        self.store, self.workers, self.watch, self.track, self.trust = store, workers, watch, track, trust

    def do(self, lines: Sequence[Asked], what: str = "runs", tell: Callable[[], None] = lambda: None) -> None:
        """Do the runs of these lines and those of the teachers that they need."""
        if not lines:
            return
        waiting = {each.key: each for line in lines for each in (*line.job.before, line.job)}
        labels = {line.job.key: self.store.label(line) for line in reversed(lines)}
        done = {key for key, job in waiting.items() if self.store.is_complete(job)}
        found, runs, began = len(done), len(waiting), time.time()
        failed: set[str] = set()
        attempts: Counter[str] = Counter()
        running: dict[Future[Outcome], Job] = {}
        waiting = {key: job for key, job in waiting.items() if key not in done}
        while waiting or running:
            self.store.check()
            for key, job in list(waiting.items()):
                if job.needs and job.needs.key in failed:
                    self.store.keep_failure(job, f"its teacher {job.needs.name} failed", "")
                    failed.add(waiting.pop(key).key)
            ready = [job for job in waiting.values() if all(other.key in done | failed for other in job.before)]
            ready.sort(key=lambda job: not job.trains_teacher)  # teachers first, since others wait for them
            for job in ready[: max(0, self.workers.count - len(running))]:
                attempts[job.key] += 1
                running[self._start(waiting.pop(job.key), done)] = job
            self._tell(Status(runs, len(done), len(failed), found, self._shares(running.values(), labels, began), what))
            over, _ = wait(running, timeout=0.25, return_when=FIRST_COMPLETED)
            for future in over:
                job, outcome = running.pop(future), _outcome(future)
                self._note(job, outcome)
                if outcome.error is None:
                    done.add(job.key)
                elif attempts[job.key] < ATTEMPTS:
                    waiting[job.key] = job
                else:
                    failed.add(job.key)
            if over:
                tell()
        self._tell(Status(runs, len(done), len(failed), found, (), what))

    def _start(self, job: Job, done: Collection[str]) -> Future[Outcome]:
        compared = {other.name: other.config for other in job.compared if other.job is None or other.job.key in done}
        piece = Piece(job.config, self.store.folder(job), compared, job.task)
        return self.workers.submit(work, piece, self.store.evaluate, self.track, self.trust)

    def _note(self, job: Job, outcome: Outcome) -> None:
        for text in outcome.warnings:
            warnings.warn(f"{job.name}: {text}", TutelageWarning, stacklevel=3)
        if outcome.error is None:
            self.store.forget_failure(job.name)
        else:
            self.store.keep_failure(job, outcome.error, outcome.trace)

    def _tell(self, status: Status) -> None:
        if self.watch:
            self.watch(status)

    def _shares(self, jobs: Iterable[Job], labels: Mapping[str, str], began: float) -> tuple[AtWork, ...]:
        """Those at work, which is seen from the epochs they have written since."""
        shares = [(job, self.store.epochs(job, began) / job.config.epochs) for job in jobs]
        return tuple(
            AtWork(job.name, labels.get(job.key, job.name), min(1.0, share)) for job, share in shares if share > 0
        )


def _outcome(future: Future[Outcome]) -> Outcome:
    try:
        return future.result()
    except TutelageError:  # no worker can start: nothing that one run could change
        raise
    except Exception as error:  # the worker died: killed, out of memory, ...
        return Outcome(f"its process died: {one_line(error)}", traceback.format_exc())


def _note_changed_code(store: Store, asked: Sequence[Asked]) -> None:
    """Warn of runs that are done again because a method or network has other code than when the study was last run."""
    before: dict[Any, dict[str, Any]] = {}
    with suppress(OSError, ValueError, KeyError, TypeError):  # the records are written anew in any case
        for text in read_file(store.path / RECORDS).splitlines():
            record = parse_json(text)
            before[cell_key(record), record["seed"]] = record
    rows, files = dict[str, str](), dict[str, None]()
    for line in asked:
        place = (line.case[: len(CONDITION)], line.case[len(CONDITION) :], line.row), line.seed
        record, code = before.get(place, {}), line.job.code
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
