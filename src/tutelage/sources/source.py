"""The base class of all sources of teacher outputs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

from torch import nn

from tutelage.data.batch import Batch
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped

Cohort = Mapping[nn.Module, Outputs]
"""The outputs of the models that are trained together, for the current batch."""

NO_COHORT: Cohort = MappingProxyType({})
"""An empty cohort."""


class Source:
    """A source of teacher outputs. They have no gradients, and computing them does not change the source.

    In your own training loop, call a source that has networks with plain inputs: ``Frozen(teacher)(images)["logits"]``.

    A subclass defines ``__call__``, and overrides the other members as needed.
    """

    models: tuple[Tapped, ...] = ()
    """The networks that it runs; the training loop moves them to the device and compiles them."""

    reads: tuple[Tapped, ...] = ()
    """The learners' models whose outputs it returns. A source that reads none runs before the students."""

    second_view: bool = False
    """Whether it needs a second view of each sample, ``Batch.second``."""

    def __call__(self, batch: Batch, roles: Collection[str] = ("logits",), cohort: Cohort = NO_COHORT) -> Outputs:
        """Return the teacher outputs of these roles for a batch."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__(batch, roles, cohort)")

    def after_step(self) -> None:
        """Called after each update of the student, for example for a moving average."""

    def state_dict(self) -> dict[str, Any]:
        """The state needed for exact resume; empty for a source that does not change."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state."""
