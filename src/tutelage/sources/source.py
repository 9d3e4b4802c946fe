"""Who teaches: the frame that every source fills in."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

from torch import nn

from tutelage.data.batch import Batch
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped

Cohort = Mapping[nn.Module, Outputs]
"""What the models that train together gave for this batch."""

NO_COHORT: Cohort = MappingProxyType({})
"""The cohort where no models train together."""


class Source:
    """Gives teaching outputs for a batch. Never with gradients; never changed by being asked.

    In a loop of one's own, sources with networks of their own are called with plain inputs:
    ``Frozen(teacher)(images)["logits"]``.

    One of your own defines ``__call__``, and of the rest what it needs.
    """

    models: tuple[Tapped, ...] = ()
    """The networks it runs itself; the loop places and compiles them."""

    reads: tuple[Tapped, ...] = ()
    """The learners' models whose answers to the batch it passes on; one that reads none is asked before they answer."""

    second_view: bool = False
    """Whether it wants each batch's samples under a second view too, ``Batch.second``."""

    def __call__(self, batch: Batch, roles: Collection[str] = ("logits",), cohort: Cohort = NO_COHORT) -> Outputs:
        """The teaching outputs for this batch, with these roles."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__(batch, roles, cohort)")

    def after_step(self) -> None:
        """React to an update of the student (a moving average does)."""

    def state_dict(self) -> dict[str, Any]:
        """What has to be kept for a run to go on exactly; nothing for a source that does not change."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a kept state."""
