"""When networks go through ``torch.compile``."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from tutelage.config import Compile
from tutelage.models.tapped import Tapped

PAYS_AFTER = 3600.0
"""Seconds of training to come from which compiling saves more than it takes.

On a processor it took 10 to 65 seconds and saved 4 to 9 % (``python -m benchmarks compiled``): that pays after 170 to
1,500 seconds, so that an hour is on the safe side.
"""

FIRST, LAST = 4, 20  # the steps between which one is timed; those before warm up


class Compiling:
    """Networks that are compiled at once, never, or (``"auto"``) as soon as the run is known to be long enough.

    With one of torch's modes that have CUDA graphs, what a compiled network gave lies where its answer to the next
    step's batch will lie: each step says when it begins, and keeps of the last one only what it has copied.

    Compiling takes a minute or so and then saves a part of each step. So the first steps are timed as the networks are
    written, and they are compiled if the steps to come would take ``PAYS_AFTER`` seconds at that pace. What was decided
    is kept with the fit: one that goes on does not decide anew, since compiled code rounds otherwise.

    Args:
        models: the networks.
        when: see above.
        steps: how many the fit has.
        clock: seconds, without what the fit does not spend itself.
    """

    def __init__(
        self,
        models: Sequence[Tapped],
        when: Compile,
        steps: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._models, self._steps, self._clock = models, steps, clock
        self.decided: bool | str | None = None if when == "auto" else when
        self._began: tuple[int, float] | None = None

    def start(self) -> None:
        """Compile, if that is decided already."""
        if self.decided:
            for model in self._models:
                model.compile(**({"mode": self.decided} if isinstance(self.decided, str) else {}))

    def stop(self) -> None:
        """Run as written again."""
        for model in self._models if self.decided else ():
            model.uncompile()

    def restore(self, decided: bool | str | None) -> None:
        """Go on as was decided, if it was and nobody has said otherwise."""
        if self.decided is None:
            self.decided = decided

    def before(self, step: int) -> None:
        """Told of each step of the fit before it is done, counted from 0."""
        if isinstance(self.decided, str):
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        if self.decided is not None:
            return
        if self._began is None:
            if step >= FIRST:
                self._began = step, self._now()
        elif step - self._began[0] == LAST - FIRST:
            pace = (self._now() - self._began[1]) / (LAST - FIRST)
            self.decided = pace * (self._steps - step) > PAYS_AFTER
            self.start()

    def _now(self) -> float:
        if self._models[0].mean.is_cuda:
            torch.cuda.synchronize(self._models[0].mean.device)
        return self._clock()
