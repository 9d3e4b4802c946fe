"""Worker processes, which may be killed at any moment."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator

import pytest

from tutelage.studies.workers import LocalWorkers, cores


@pytest.fixture
def two() -> Iterator[LocalWorkers]:
    workers = LocalWorkers(2)
    yield workers
    workers.stop()
    assert not multiprocessing.active_children()


def who(seconds: float = 0.0) -> int:
    time.sleep(seconds)
    return os.getpid()


def threads() -> int:
    import torch

    return torch.get_num_threads()


def fail() -> None:
    raise ValueError("as it is meant to")


@pytest.mark.timeout(200)
def test_killed_process_fails_only_its_call(two: LocalWorkers) -> None:
    both = {future.result() for future in [two.submit(who, 1.0) for _ in range(2)]}
    assert len(both) == 2
    assert os.getpid() not in both

    os.kill(both.pop(), signal.SIGKILL)  # one that has nothing to do
    time.sleep(0.5)
    (other,) = both
    after = [future.result() for future in [two.submit(who, 1.0) for _ in range(2)]]
    assert other in after
    assert len(set(after)) == 2

    lost, kept = two.submit(who, 60.0), None
    while lost.running() is False:
        time.sleep(0.01)
    kept = two.submit(who, 1.0)
    keeper = kept.result()
    (victim,) = set(after) - {keeper}
    os.kill(victim, signal.SIGKILL)  # one at work
    with pytest.raises(ChildProcessError, match="-9"):
        lost.result(timeout=30)
    assert two.submit(who).result() != victim


def test_call_that_raises_fails_as_its_process_would(two: LocalWorkers) -> None:
    with pytest.raises(ChildProcessError):  # calls that may fail say so in what they return
        two.submit(fail).result(timeout=60)
    assert two.submit(who).result() > 0


def test_cores_are_divided_among_workers(two: LocalWorkers) -> None:
    assert two.submit(threads).result() == max(1, cores() // 2)


def test_stop_does_not_wait_for_calls() -> None:
    workers = LocalWorkers(1)
    future, waiting = workers.submit(who, 600.0), workers.submit(who)
    while not multiprocessing.active_children():
        time.sleep(0.01)
    start = time.monotonic()
    workers.stop()
    assert time.monotonic() - start < 30
    assert waiting.cancelled()
    assert isinstance(future.exception(), ChildProcessError)
