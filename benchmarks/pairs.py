"""Running times compared in alternation within one process, so that the machine's load affects all alike."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

Numbers = dict[str, Any]


def as_json(ratios: Mapping[str, Ratio]) -> Numbers:
    """Ratios as JSON values."""
    return {name: ratio.as_json() for name, ratio in ratios.items()}


@dataclass(frozen=True)
class Ratio:
    """A running time relative to a reference: median and quartiles of the rounds' ratios, and median seconds."""

    median: float
    low: float
    high: float
    seconds: float

    def as_json(self) -> dict[str, float]:
        """Rounded numbers."""
        return {
            "ratio": round(self.median, 4),
            "quartiles": [round(self.low, 4), round(self.high, 4)],
            "median_seconds": round(self.seconds, 4),
        }


def compare(
    candidates: Mapping[str, Callable[[], object]], reference: str, rounds: int, warm_up: int = 1
) -> dict[str, Ratio]:
    """Run each candidate once per round, in rotating order, and divide its times by those of the reference.

    ``warm_up`` further rounds come first and are not counted.
    """
    names = list(candidates)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warm_up, rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            seconds = timed(candidates[name])
            if number >= 0:
                times[name].append(seconds)
    return {name: ratio_of(times[name], times[reference]) for name in names}


class Rounds:
    """A long computation that is executed one round at a time, in a thread that waits between the rounds.

    Args:
        work: gets a function that it calls at the end of each round, and that returns when the next round begins.
    """

    def __init__(self, work: Callable[[Callable[[], None]], object]) -> None:
        self._begin, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._stopping = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    def __call__(self) -> None:
        """Execute one round.

        Raises:
            RuntimeError: the computation has ended.
        """
        self._begin.release()
        self._done.acquire()
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        """Stop the computation."""
        self._stopping = True
        self._begin.release()
        self._thread.join()

    def _run(self, work: Callable[[Callable[[], None]], object]) -> None:
        try:
            self._await_round()
            work(self._end_round)
            self._error = RuntimeError("the computation ended before the last round")
        except _StoppedError:
            pass
        except BaseException as error:  # raised again by the call that waits for this round
            self._error = error
        self._done.release()

    def _end_round(self) -> None:
        self._done.release()
        self._await_round()

    def _await_round(self) -> None:
        self._begin.acquire()
        if self._stopping:
            raise _StoppedError


class _StoppedError(BaseException):
    """Raised inside a computation that is stopped."""


def every(steps: int, end_round: Callable[[], None]) -> Callable[[], None]:
    """A function to call after each step, which ends the round after ``steps`` steps."""
    count = 0

    def end_step() -> None:
        nonlocal count
        count += 1
        if count % steps == 0:
            end_round()

    return end_step


def timed(function: Callable[[], object]) -> float:
    """Seconds of a call, including work that an accelerator executes asynchronously."""
    _wait()
    start = time.perf_counter()
    function()
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def ratio_of(times: list[float], reference: list[float]) -> Ratio:
    """The ratios of the seconds of each round to those of a reference."""
    ratios = [a / b for a, b in zip(times, reference, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    return Ratio(median, low, high, statistics.median(times))
