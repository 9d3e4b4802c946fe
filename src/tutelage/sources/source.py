"""Who teaches: the frame that every source fills in."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

import torch
from torch import nn

from tutelage.data.batch import Batch
from tutelage.models.outputs import Outputs

Cohort = Mapping[nn.Module, Outputs]
"""What the models that train together gave for this batch."""


class Source(Protocol):
    """Gives teaching outputs for a batch. Never with gradients; never changed by being asked."""

    def __call__(self, batch: Batch, roles: Collection[str], cohort: Cohort) -> Outputs:
        """The teaching outputs for this batch, with these roles."""
        ...

    def after_step(self) -> None:
        """React to an update of the student (a moving average does)."""
        ...

    def to(self, device: torch.device) -> Any:
        """Move what it holds."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What has to be kept for a run to go on exactly; nothing for a source that does not change."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a kept state."""
        ...


class Unchanging:
    """The half of a source that has no state of its own."""

    def after_step(self) -> None:
        """Nothing to do."""

    def to(self, device: torch.device) -> Any:
        """Nothing to move."""
        return self

    def state_dict(self) -> dict[str, Any]:
        """Nothing to keep."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to take up."""
