"""Worker processes, which may be killed at any moment."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator

import pytest

from tutelage.cores import cores
from tutelage.studies.workers import LocalWorkers


@pytest.fixture
def pair_of_workers() -> Iterator[LocalWorkers]:
    workers = LocalWorkers(2)
    yield workers
    workers.stop()
    assert not multiprocessing.active_children()


def process_id(seconds: float = 0.0) -> int:
    time.sleep(seconds)
    return os.getpid()


def threads() -> int:
    import torch

    return torch.get_num_threads()


def fail() -> None:
    raise ValueError("as it is meant to")


@pytest.mark.timeout(200)
def test_killed_process_fails_only_its_call(pair_of_workers: LocalWorkers) -> None:
    ids = {future.result() for future in [pair_of_workers.submit(process_id, 1.0) for _ in range(2)]}
    assert len(ids) == 2
    assert os.getpid() not in ids

    os.kill(ids.pop(), signal.SIGKILL)  # one that has nothing to do
    time.sleep(0.5)
    (other,) = ids
    after = [future.result() for future in [pair_of_workers.submit(process_id, 1.0) for _ in range(2)]]
    assert other in after
    assert len(set(after)) == 2

    lost_call, next_call = pair_of_workers.submit(process_id, 60.0), None
    while lost_call.running() is False:
        time.sleep(0.01)
    next_call = pair_of_workers.submit(process_id, 1.0)
    remaining_id = next_call.result()
    (victim,) = set(after) - {remaining_id}
    os.kill(victim, signal.SIGKILL)  # one at work
    with pytest.raises(ChildProcessError, match="-9"):
        lost_call.result(timeout=30)
    assert pair_of_workers.submit(process_id).result() != victim


def test_call_that_raises_fails_as_its_process_would(pair_of_workers: LocalWorkers) -> None:
    with pytest.raises(ChildProcessError):  # calls that may fail say so in what they return
        pair_of_workers.submit(fail).result(timeout=60)
    assert pair_of_workers.submit(process_id).result() > 0


def test_cores_are_divided_among_workers(pair_of_workers: LocalWorkers) -> None:
    assert pair_of_workers.submit(threads).result() == max(1, cores() // 2)


def test_stop_does_not_wait_for_calls() -> None:
    workers = LocalWorkers(1)
    future, waiting = workers.submit(process_id, 600.0), workers.submit(process_id)
    while not multiprocessing.active_children():
        time.sleep(0.01)
    start = time.monotonic()
    workers.stop()
    assert time.monotonic() - start < 30
    assert waiting.cancelled()
    assert isinstance(future.exception(), ChildProcessError)
