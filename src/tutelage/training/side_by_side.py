"""Several runs in one process, whose students are shown one stream of batches and taught by one pass of the teacher."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Hashable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from greenlet import getcurrent, greenlet

from tutelage.ambient import default_settings
from tutelage.data.batch import Batch
from tutelage.models.fingerprint import fingerprint
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.training.checkpoint import generators, restore_generators

T = TypeVar("T")
Position = tuple[int, int]
"""An epoch of a fit, and a step of the epoch."""


@default_settings()
def side_by_side(*runs: Callable[[Seat], T]) -> list[T | Exception]:
    """Call functions that train, each with its seat, and give what each returns, or the error that ended it.

    Each is a coroutine: it computes until it reaches its next step, then the one that is furthest behind goes on. So
    all who come by a step have done it before anybody does the next, and one that begins a second fit, or was stopped
    earlier than the others, catches up. What was made for a step is kept until then.

    A run gives the numbers that it gives alone: its weights, optimiser and every random generator are its own. What is
    shared is the work: a batch is read, cropped and flipped once, and a frozen teacher is asked once a batch.
    """
    room = _Room(runs)
    return room.go()


class Seat:
    """One run's place among those that train side by side."""

    def __init__(self, room: _Room, number: int) -> None:
        self._room, self._number = room, number
        self.waited = 0.0
        """Seconds in which the others had their turns."""

    def show(self, stream: Hashable, epoch: int, step: int, make: Callable[[], Batch]) -> Batch:
        """This step's batch of a stream, made by the first to come; returns when no run is further behind."""
        self.waited += self._room.reach(self._number, (epoch, step))
        if stream not in self._room.batches:
            self._room.batches[stream] = make()
        return self._room.batches[stream]

    def ask(self, teacher: Tapped, batch: Batch, roles: Collection[str]) -> Outputs:
        """What a frozen network in eval mode answers to the batch, in one pass for all whom the same weights teach.

        The pass counts for everyone who is given of it, so that a run's costs are those that it has alone.
        """
        if not any(batch is shown for shown in self._room.batches.values()):
            return teacher.tap(batch.inputs, roles)  # a view of the run's own
        return self._room.answer(teacher, batch, roles)


class _Room:
    """Who is where, and what was made for the step at hand."""

    def __init__(self, runs: Sequence[Callable[[Seat], Any]]) -> None:
        self.batches: dict[Hashable, Batch] = {}
        self._answers: dict[Hashable, Outputs] = {}
        self._asked: dict[Hashable, set[str]] = {}
        self._expected: dict[Hashable, set[str]] = {}
        self._teachers: dict[int, tuple[Tapped, Hashable]] = {}
        self._now: Position | None = None
        self._results: list[Any] = [None] * len(runs)
        self._generators = generators()
        self._main = getcurrent()
        self._seated = [greenlet(partial(self._run, number, run)) for number, run in enumerate(runs)]
        self._waiting: dict[int, Position] = dict.fromkeys(range(len(runs)), (-1, 0))

    def go(self) -> list[Any]:
        """Until all are done."""
        try:
            while self._waiting:
                number = min(self._waiting, key=self._waiting.__getitem__)
                self._seated[number].switch()
        finally:  # Ctrl-C: end the others here and now, so that they let go of their files
            for seated in self._seated:
                seated.throw()
            restore_generators(self._generators)
        return self._results

    def _run(self, number: int, run: Callable[[Seat], Any]) -> None:
        restore_generators(self._generators)
        del self._waiting[number]
        try:
            self._results[number] = run(Seat(self, number))
        except Exception as error:  # one run's trouble is not the others'
            self._results[number] = error

    def reach(self, number: int, position: Position) -> float:
        """Return when no run is further behind; after how many seconds."""
        start = time.perf_counter()
        if any(other < position for other in self._waiting.values()):
            own = generators()
            self._waiting[number] = position
            self._main.switch()
            del self._waiting[number]
            restore_generators(own)
        if position != self._now:
            self._now = position
            self.batches, self._answers = {}, {}
            self._expected, self._asked = self._asked, {}
        return time.perf_counter() - start

    def answer(self, teacher: Tapped, batch: Batch, roles: Collection[str]) -> Outputs:
        """The roles asked for, from one pass that also captures what was asked for at the step before."""
        autocast = torch.is_autocast_enabled(batch.inputs.device.type)
        weights = self._weights(teacher)
        self._asked.setdefault(weights, set()).update(roles)
        known = self._answers.get((weights, autocast, id(batch)), Outputs(None))
        have = {*known.features, *(() if known.logits is None else ("logits",))}
        if have.issuperset(roles):
            teacher.passes += len(batch)
        else:
            new = teacher.tap(batch.inputs, sorted({*roles, *self._expected.get(weights, ())} - have))
            new = new.clone()  # with CUDA graphs it lies where it stays only until the next of the runs begins its step
            logits = known.logits if new.logits is None else new.logits
            known = Outputs(logits, {**known.features, **new.features})
            self._answers[weights, autocast, id(batch)] = known
        return known.select(roles)

    def _weights(self, teacher: Tapped) -> Hashable:
        """What two networks share only if they answer alike."""
        if id(teacher) not in self._teachers:
            told = (fingerprint(teacher), *teacher.mean.flatten().tolist(), *teacher.std.flatten().tolist())
            self._teachers[id(teacher)] = teacher, told
        return self._teachers[id(teacher)][1]
