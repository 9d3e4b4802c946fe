"""Jobs that depend on each other: order, failures and resume."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from dataclasses import dataclass

import pytest

from tutelage.errors import TutelageWarning
from tutelage.studies.jobs import Call, Outcome, Status, run_jobs, warning_texts
from tutelage.studies.workers import InlineWorkers


@dataclass(frozen=True)
class Step:
    name: str
    needs: Step | None = None
    after: tuple[Step, ...] = ()

    @property
    def key(self) -> str:
        return self.name

    @property
    def before(self) -> tuple[Step, ...]:
        return (*self.after, *([self.needs] if self.needs else []))


class Memory:
    """A ledger in memory; the calls of some names fail as often as said."""

    def __init__(self, failures: dict[str, int] | None = None, complete: Collection[str] = ()) -> None:
        self.failures, self.complete = dict(failures or {}), set(complete)
        self.called: list[str] = []
        self.recorded: list[tuple[str, str | None]] = []
        self.done: dict[str, set[str]] = {}

    def check(self) -> None:
        pass

    def is_complete(self, job: Step) -> bool:
        return job.name in self.complete

    def label(self, job: Step) -> str:
        return f"the job {job.name}"

    def call(self, job: Step, complete_jobs: Collection[str]) -> Call:
        self.done[job.name] = set(complete_jobs)
        return Call(self._run, (job.name,))

    def share(self, job: Step, start_time: float) -> float | None:
        return 0.5

    def record(self, job: Step, outcome: Outcome) -> None:
        self.recorded.append((job.name, outcome.error))

    def _run(self, name: str) -> None:
        self.called.append(name)
        if self.failures.get(name, 0):
            self.failures[name] -= 1
            raise ValueError(f"{name} broke")


def test_jobs_that_others_wait_for_come_first_and_need_not_be_listed() -> None:
    teacher = Step("teacher")
    memory = Memory()
    assert run_jobs([Step("plain"), Step("student", needs=teacher)], memory, InlineWorkers()) == {}
    assert memory.called == ["teacher", "plain", "student"]
    assert memory.done["student"] == {"teacher", "plain"}


def test_complete_jobs_are_skipped() -> None:
    teacher = Step("teacher")
    memory, statuses = Memory(complete={"teacher"}), list[Status]()
    run_jobs([teacher, Step("student", needs=teacher)], memory, InlineWorkers(), statuses.append)
    assert memory.called == ["student"]
    assert statuses[-1] == Status(runs=2, done=2, failed=0, skipped=1, running=())
    assert statuses[-1].share == 1.0


def test_job_that_fails_once_is_tried_again() -> None:
    memory = Memory({"a": 1})
    assert run_jobs([Step("a")], memory, InlineWorkers()) == {}
    assert memory.recorded == [("a", "a broke"), ("a", None)]


def test_job_that_fails_twice_takes_only_those_that_need_it_with_it() -> None:
    teacher = Step("teacher")
    memory = Memory({"teacher": 5})
    jobs = [Step("student", needs=teacher), Step("compared", after=(teacher,)), Step("plain")]
    errors = run_jobs(jobs, memory, InlineWorkers())
    assert errors == {"teacher": "teacher broke", "student": "teacher, which it needs, failed"}
    assert memory.called.count("teacher") == 2
    assert set(memory.called) == {"teacher", "compared", "plain"}
    assert ("student", "teacher, which it needs, failed") in memory.recorded


def test_progress_counts_running_jobs_in_part() -> None:
    statuses: list[Status] = []
    changes: list[None] = []
    run_jobs([Step("a"), Step("b")], Memory(), InlineWorkers(), statuses.append, on_change=lambda: changes.append(None))
    assert [(status.done, [job.label for job in status.running]) for status in statuses] == [
        (0, ["the job a"]),
        (1, ["the job b"]),
        (2, []),
    ]
    assert [status.share for status in statuses] == [0.25, 0.75, 1.0]
    assert len(changes) == 2


class WarningMemory(Memory):
    """A ledger whose jobs all cause one equal warning and one with their name."""

    def _run(self, name: str) -> None:
        warnings.warn("there is no test split", TutelageWarning, stacklevel=1)
        warnings.warn(f"{name} is slow", TutelageWarning, stacklevel=1)


def test_a_warning_of_many_jobs_is_shown_once() -> None:
    with pytest.warns(TutelageWarning) as caught:
        run_jobs([Step("a"), Step("b")], WarningMemory(), InlineWorkers())
    texts = [str(warning.message) for warning in caught]
    assert texts == ["a: there is no test split", "a: a is slow", "b: b is slow"]


def test_a_warning_that_was_shown_before_the_jobs_is_not_repeated() -> None:
    with pytest.warns(TutelageWarning, match="^there is no test split$"), warning_texts() as texts:
        warnings.warn("there is no test split", TutelageWarning, stacklevel=1)
    with pytest.warns(TutelageWarning) as caught:
        run_jobs([Step("a")], WarningMemory(), InlineWorkers(), texts=texts)
    assert [str(warning.message) for warning in caught] == ["a: a is slow"]
