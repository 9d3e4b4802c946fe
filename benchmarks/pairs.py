"""Running times compared in alternation within one process, so that the machine's load affects all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from greenlet import getcurrent, greenlet

from tutelage.data.batch import Batch

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
    return {name: _ratio(times[name], times[reference]) for name in names}


class Rounds:
    """A long computation that is executed one round at a time.

    Args:
        work: gets a function that it calls at the end of each round, and that returns when the next round begins.
    """

    def __init__(self, work: Callable[[Callable[[], None]], object]) -> None:
        self._work = greenlet(work)
        self._caller = getcurrent()

    def __call__(self) -> None:
        """Execute one round.

        Raises:
            RuntimeError: the computation has ended.
        """
        self._work.switch(self._caller.switch)
        if self._work.dead:
            raise RuntimeError("the computation ended before the last round")

    def end(self) -> None:
        """Stop the computation."""
        self._work.throw()


class StepHook:
    """A slot of ``fit`` that reports the end of each step."""

    waited = 0.0

    def __init__(self, end_step: Callable[[], None]) -> None:
        self._end_step, self._first = end_step, True

    def show(self, stream: Hashable, epoch: int, step: int, make: Callable[[], Batch]) -> Batch:
        """The batch of the step."""
        if not self._first:
            self._end_step()
        self._first = False
        return make()


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


def _ratio(times: list[float], reference: list[float]) -> Ratio:
    ratios = [a / b for a, b in zip(times, reference, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    return Ratio(median, low, high, statistics.median(times))
