"""Runs jobs in workers, in the order of their dependencies; skips those that are recorded as complete."""

from __future__ import annotations

import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self, TypeVar

from tutelage.errors import TutelageError, TutelageWarning, one_line
from tutelage.studies.workers import Workers

ATTEMPTS = 2
"""How often a job is tried: once more after its first failure."""


class Job(Protocol):
    """A unit of work that is done once.

    Attributes:
        key: identifies the job: equal keys, equal results.
        name: the job's name in messages.
        before: the jobs that must have ended before this one starts.
        needs: the one of them that must have succeeded, if any.
    """

    @property
    def key(self) -> str:
        """See the class."""
        ...

    @property
    def name(self) -> str:
        """See the class."""
        ...

    @property
    def before(self) -> tuple[Self, ...]:
        """See the class."""
        ...

    @property
    def needs(self) -> Self | None:
        """See the class."""
        ...


J = TypeVar("J", bound=Job)
J_contra = TypeVar("J_contra", bound=Job, contravariant=True)


class Call(NamedTuple):
    """A function for a worker, with its arguments; both are pickled where workers are processes."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Outcome:
    """The result of a call: a value or an error.

    Attributes:
        value: what it returned; ``None`` if it failed.
        error: why it failed, in one line; ``None`` if it did not.
        trace: the traceback of the error.
        warnings: the text of each ``TutelageWarning``.
    """

    value: Any = None
    error: str | None = None
    trace: str = ""
    warnings: tuple[str, ...] = ()


class Ledger(Protocol[J_contra]):
    """Records jobs on disk, and says what each of them calls."""

    def check(self) -> None:
        """Raise ``TutelageError`` if results can no longer be written."""
        ...

    def is_complete(self, job: J_contra) -> bool:
        """Whether the job is recorded as complete, so that it need not run."""
        ...

    def label(self, job: J_contra) -> str:
        """A description of the job for people."""
        ...

    def call(self, job: J_contra, done: Collection[str]) -> Call:
        """The call that does the job in a worker, given the keys of the jobs that succeeded."""
        ...

    def share(self, job: J_contra, since: float) -> float | None:
        """The share of a job that is done, in [0, 1]; ``None`` before it has written anything since this time."""
        ...

    def record(self, job: J_contra, outcome: Outcome) -> None:
        """Record the result of an attempt at the job."""
        ...


class ActiveJob(NamedTuple):
    """A running job: its name, its description for people, and the share of it that is done."""

    name: str
    label: str
    share: float


@dataclass(frozen=True)
class Status:
    """The progress of a study.

    Attributes:
        runs: number of all jobs.
        done: number of jobs that succeeded, skipped ones included.
        failed: number of jobs that failed.
        skipped: number of jobs that were complete from the start.
        running: the jobs that run now.
        unit: the noun of the counts: ``runs``, or ``trials`` of a tuning budget.
    """

    runs: int
    done: int
    failed: int
    skipped: int
    running: tuple[ActiveJob, ...]
    unit: str = "runs"

    @property
    def share(self) -> float:
        """The share of all work that is over, running jobs counted in part: in [0, 1]."""
        return (self.done + self.failed + sum(job.share for job in self.running)) / max(1, self.runs)


Watch = Callable[[Status], None]


def run_jobs(
    jobs: Sequence[J],
    ledger: Ledger[J],
    workers: Workers,
    watch: Watch | None = None,
    *,
    unit: str = "runs",
    on_change: Callable[[], None] = lambda: None,
    texts: set[str] | None = None,
) -> dict[str, str]:
    """Run the jobs that are not complete, and those that they depend on.

    Jobs that others wait for start first. A job that fails is tried ``ATTEMPTS`` times; a job whose ``needs`` failed is
    recorded as failed without a try.

    Args:
        jobs: what to run; dependencies need not be listed.
        ledger: records them.
        workers: run them; not stopped at the end.
        watch: called with the progress several times a second.
        unit: noun for the jobs in the progress.
        on_change: called after an attempt ended.
        texts: warnings that the user has seen, which are not repeated; the new ones are added.

    Returns:
        The error of each failed job, by key.

    Raises:
        TutelageError: nothing can be recorded, or no worker can be started.
    """
    if not jobs:
        return {}
    waiting = {job.key: job for listed in jobs for job in (*listed.before, listed)}
    count, start = len(waiting), time.time()
    awaited = {earlier.key for job in waiting.values() for earlier in job.before}
    done = {key for key, job in waiting.items() if ledger.is_complete(job)}
    skipped = len(done)
    texts = set() if texts is None else texts
    errors: dict[str, str] = {}
    attempts: Counter[str] = Counter()
    running: dict[Future[Outcome], J] = {}
    waiting = {key: job for key, job in waiting.items() if key not in done}

    def report() -> None:
        if watch:
            active = _active(ledger, running.values(), start)
            watch(Status(count, len(done), len(errors), skipped, active, unit))

    while waiting or running:
        ledger.check()
        for job in list(waiting.values()):
            if job.needs and job.needs.key in errors:
                errors[waiting.pop(job.key).key] = error = f"{job.needs.name}, which it needs, failed"
                ledger.record(job, Outcome(error=error))
        ready = [
            job
            for job in waiting.values()
            if all(earlier.key in done or earlier.key in errors for earlier in job.before)
        ]
        ready.sort(key=lambda job: job.key not in awaited)
        for job in ready[: max(0, workers.count - len(running))]:
            attempts[job.key] += 1
            function, arguments = ledger.call(waiting.pop(job.key), done)
            running[workers.submit(attempt, function, *arguments)] = job
        report()
        over, _ = wait(running, timeout=0.25, return_when=FIRST_COMPLETED)
        for future in over:
            job, outcome = running.pop(future), _outcome(future)
            for text in outcome.warnings:
                if text not in texts:
                    texts.add(text)
                    warnings.warn(f"{job.name}: {text}", TutelageWarning, stacklevel=3)
            ledger.record(job, outcome)
            if outcome.error is None:
                done.add(job.key)
            elif attempts[job.key] < ATTEMPTS:
                waiting[job.key] = job
            else:
                errors[job.key] = outcome.error
        if over:
            on_change()
    report()
    return errors


@contextmanager
def warning_texts() -> Iterator[set[str]]:
    """A context whose value collects the texts of the warnings that are shown in it."""
    texts: set[str] = set()
    show = warnings.showwarning

    def collect(message: Warning | str, *arguments: Any, **keywords: Any) -> None:
        texts.add(str(message))
        show(message, *arguments, **keywords)

    warnings.showwarning = collect
    try:
        yield texts
    finally:
        warnings.showwarning = show


def attempt(function: Callable[..., Any], *arguments: Any) -> Outcome:
    """Call a function in a worker; return its value or its error, and its warnings."""
    texts: dict[str, None] = {}

    def collect(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, TutelageWarning):
            texts[str(message)] = None

    with warnings.catch_warnings():
        warnings.simplefilter("always", TutelageWarning)
        warnings.showwarning = collect
        try:
            value = function(*arguments)
        except Exception as error:  # one job's failure does not end the others
            return Outcome(None, one_line(error), traceback.format_exc(), tuple(texts))
    return Outcome(value, warnings=tuple(texts))


def _outcome(future: Future[Outcome]) -> Outcome:
    try:
        return future.result()
    except TutelageError:  # no worker can start, so that every job would fail
        raise
    except Exception as error:  # the worker died: killed, out of memory, ...
        return Outcome(error=f"its process died: {one_line(error)}", trace=traceback.format_exc())


def _active(ledger: Ledger[J], jobs: Collection[J], start: float) -> tuple[ActiveJob, ...]:
    shares = [(job, ledger.share(job, start)) for job in jobs]
    return tuple(ActiveJob(job.name, ledger.label(job), share) for job, share in shares if share is not None)
