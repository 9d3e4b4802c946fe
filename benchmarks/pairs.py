"""Ratios of times, taken in turns in one process: a machine's moods hit both sides alike."""

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
    """Plain values."""
    return {name: ratio.as_json() for name, ratio in ratios.items()}


@dataclass(frozen=True)
class Ratio:
    """How long one thing takes beside another: the median of the rounds' ratios, and their quartiles."""

    median: float
    low: float
    high: float
    seconds: float

    def as_json(self) -> dict[str, float]:
        """Plain numbers, rounded to what they are worth."""
        return {
            "ratio": round(self.median, 4),
            "quartiles": [round(self.low, 4), round(self.high, 4)],
            "median_seconds": round(self.seconds, 4),
        }


def compare(
    things: Mapping[str, Callable[[], object]], against: str, rounds: int, warm_up: int = 1
) -> dict[str, Ratio]:
    """Run each thing once a round, in an order that turns, and set its time against that of one of them.

    So many rounds more as ``warm_up`` says are run first, and forgotten.
    """
    names = list(things)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warm_up, rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            seconds = timed(things[name])
            if number >= 0:
                taken[name].append(seconds)
    return {name: _ratio(taken[name], taken[against]) for name in names}


class InRounds:
    """Long work as something that is done a round at a time.

    Args:
        work: is given a function; calling it ends a round, and returns when the next one begins.
    """

    def __init__(self, work: Callable[[Callable[[], None]], object]) -> None:
        self._work = greenlet(work)
        self._caller = getcurrent()

    def __call__(self) -> None:
        """One round more.

        Raises:
            RuntimeError: when the work is over.
        """
        self._work.switch(self._caller.switch)
        if self._work.dead:
            raise RuntimeError("the work was over before the last round")

    def end(self) -> None:
        """No round more."""
        self._work.throw()


class Beat:
    """A seat in ``fit`` that tells of the end of each step."""

    waited = 0.0

    def __init__(self, end_step: Callable[[], None]) -> None:
        self._end_step, self._first = end_step, True

    def show(self, stream: Hashable, epoch: int, step: int, make: Callable[[], Batch]) -> Batch:
        """The step's own batch."""
        if not self._first:
            self._end_step()
        self._first = False
        return make()


def every(steps: int, end_round: Callable[[], None]) -> Callable[[], None]:
    """What ends a step, where so many of them are a round."""
    done = 0

    def end_step() -> None:
        nonlocal done
        done += 1
        if done % steps == 0:
            end_round()

    return end_step


def timed(thing: Callable[[], object]) -> float:
    """How many seconds it takes, to the end of what an accelerator was told."""
    _wait()
    start = time.perf_counter()
    thing()
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def _ratio(taken: list[float], reference: list[float]) -> Ratio:
    ratios = [a / b for a, b in zip(taken, reference, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    return Ratio(median, low, high, statistics.median(taken))
