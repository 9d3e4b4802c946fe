"""Imitations of CUDA graphs and of a read-only medium."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

from torch import Tensor


class Graphs:
    """CUDA graphs as far as they go without a GPU: what compiled code gives lies where its next step's answer will lie.

    Where a step begins, all that the last one left there is spoilt.
    """

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.places: list[list[list[Tensor]]] = []
        from torch._dynamo.backends.common import aot_autograd  # takes seconds

        self.backend = aot_autograd(fw_compiler=self.compiled, bw_compiler=self.compiled)

    def begin_step(self) -> None:
        self.calls = [0] * len(self.calls)
        for place in (place for calls in self.places for places in calls for place in places):
            if place.is_floating_point():
                place.fill_(float("nan"))

    def compiled(self, module: Any, _: Any) -> Any:
        number = len(self.places)
        self.calls.append(0)
        self.places.append([])

        def run(*arguments: Any) -> list[Any]:
            memory = {value.untyped_storage().data_ptr() for value in arguments if isinstance(value, Tensor)}
            outputs = list(module(*arguments))
            own_outputs = [
                place
                for place, value in enumerate(outputs)
                if isinstance(value, Tensor) and value.untyped_storage().data_ptr() not in memory
            ]
            if self.calls[number] == len(self.places[number]):
                self.places[number].append([outputs[place].clone() for place in own_outputs])
            memory_outputs = self.places[number][self.calls[number]]
            self.calls[number] += 1
            for place, memory_output in zip(own_outputs, memory_outputs, strict=True):
                assert memory_output.shape == outputs[place].shape
                outputs[place] = memory_output.copy_(outputs[place]).detach()
            return outputs

        from functorch.compile import make_boxed_func

        return make_boxed_func(run)


class ReadOnly:
    """Refuses, as a read-only medium does, every call that would write below a folder, also for root."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        sys.addaudithook(self)  # there is no way to remove one

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        writes = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.truncate", "os.utime")
        if event == "open":
            flags = arguments[2]
            writes = isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
        if writes and isinstance(arguments[0], str | os.PathLike) and self.covers(arguments[0]):
            raise OSError(errno.EROFS, "Read-only file system", os.path.abspath(arguments[0]))

    def covers(self, path: str | os.PathLike[str]) -> bool:
        """Whether a path is on the medium."""
        return self.folder is not None and os.path.abspath(path).startswith(f"{self.folder}{os.sep}")
