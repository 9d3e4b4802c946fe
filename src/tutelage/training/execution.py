"""Where a fit runs and where it saves its checkpoints."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from tutelage.config import Hardware
from tutelage.training.checkpoint import Checkpoints
from tutelage.training.hardware import autocast, resolve
from tutelage.training.processes import Processes


@dataclass(frozen=True, slots=True)
class Execution:
    """The hardware, the processes and the checkpoints of a fit.

    Attributes:
        hardware: resolved, without ``auto``.
        processes: which process this is, if several train together.
        checkpoints: where the state is saved after each epoch and read when the fit is started again; ``None`` saves
            nothing.
    """

    hardware: Hardware
    processes: Processes
    checkpoints: Checkpoints | None = None

    @classmethod
    def on(
        cls,
        hardware: Hardware | None = None,
        processes: Processes | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> Execution:
        """Resolve every ``auto`` of the hardware, and join the other processes of a launcher unless they are given.

        Raises:
            TutelageError: there is no such device, or the other processes cannot be joined.
        """
        hardware = hardware or Hardware()
        if processes is None:
            processes = Processes.current(hardware.device)
        return cls(resolve(hardware, processes), processes, checkpoints)

    @property
    def device(self) -> torch.device:
        """The device of the networks and batches."""
        return torch.device(self.hardware.device)

    def autocast(self) -> AbstractContextManager[object]:
        """The precision of forward passes, as a context."""
        return autocast(self.hardware)

    def last_checkpoint(self) -> str:
        """A sentence for error messages that names the last checkpoint; empty if there is none."""
        path = self.checkpoints.latest() if self.checkpoints else None
        return f". The last good checkpoint is {path}" if path else ""
