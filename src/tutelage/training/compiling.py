"""The decision when to call ``torch.compile``."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from tutelage.config import Compile
from tutelage.models.tapped import Tapped

PAYS_AFTER = 3600.0
"""Seconds of remaining training above which compilation saves time.

On a CPU it took 10 to 65 seconds and saved 4 to 9 % (``python -m benchmarks compiled``), so it pays after 170 to 1,500
seconds; an hour is on the safe side.
"""

FIRST, LAST = 4, 20  # the steps that are timed; those before are a warm-up


class Compiling:
    """Compiles networks at once, never, or (``"auto"``) if the fit is long enough.

    Compilation takes about a minute and then makes each step faster. With ``"auto"``, the first steps are timed without
    it, and the networks are compiled if the remaining steps would take ``PAYS_AFTER`` seconds at that rate. The
    decision is saved in checkpoints, and a resumed fit keeps it, since compiled code rounds differently.

    In torch's modes with CUDA graphs, a compiled network's outputs are overwritten in the next step. Each step
    announces its start to torch, and anything that outlives a step must be copied.

    Args:
        models: the networks.
        when: see above.
        steps: the number of steps of the fit.
        clock: the current time in seconds.
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
        self._start: tuple[int, float] | None = None

    def start(self) -> None:
        """Compile, if this is decided."""
        if self.decided:
            for model in self._models:
                model.compile(**({"mode": self.decided} if isinstance(self.decided, str) else {}))

    def stop(self) -> None:
        """Undo the compilation."""
        for model in self._models if self.decided else ():
            model.uncompile()

    def restore(self, decided: bool | str | None) -> None:
        """Restore a saved decision, unless the configuration decides."""
        if self.decided is None:
            self.decided = decided

    def before(self, step: int) -> None:
        """Called before each step of the fit, counted from 0."""
        if isinstance(self.decided, str):
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        if self.decided is not None:
            return
        if self._start is None:
            if step >= FIRST:
                self._start = step, self._now()
        elif step - self._start[0] == LAST - FIRST:
            pace = (self._now() - self._start[1]) / (LAST - FIRST)
            self.decided = pace * (self._steps - step) > PAYS_AFTER
            self.start()

    def _now(self) -> float:
        if self._models[0].mean.is_cuda:
            torch.cuda.synchronize(self._models[0].mean.device)
        return self._clock()
