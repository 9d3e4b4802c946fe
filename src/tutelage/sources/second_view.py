"""A teacher who sees the same samples under another view than the student."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from tutelage.data.batch import Batch
from tutelage.models.outputs import Outputs
from tutelage.sources.source import NO_COHORT, Cohort, Source


class SecondView(Source):
    """Shows another source the second view of each sample, drawn independently of the one that the student sees.

    Args:
        source: who teaches; one that answers for itself, since a cohort has seen the first view alone.
    """

    second_view = True

    def __init__(self, source: Source) -> None:
        if source.reads:
            raise ValueError(f"{type(source).__name__} passes on answers to the first view; give a source of its own")
        self.source, self.models = source, source.models

    def __call__(self, batch: Batch, roles: Collection[str] = ("logits",), cohort: Cohort = NO_COHORT) -> Outputs:
        """The source's answer to ``batch.second``."""
        if batch.second is None:
            raise ValueError("SecondView needs a batch with a second view; a view of a term makes none")
        return self.source(replace(batch, inputs=batch.second, key=None), roles, cohort)

    def after_step(self) -> None:
        """As the source."""
        self.source.after_step()

    def state_dict(self) -> dict[str, Any]:
        """That of the source."""
        return self.source.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the source's state."""
        self.source.load_state_dict(state)
