"""A teacher that gets another view of the same samples than the student."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs
from tutelage.sources.source import NO_COHORT, Cohort, Source


class SecondView(Source):
    """Runs another source on a second view of each sample, drawn independently of the student's view.

    Args:
        source: the teacher, with networks of its own, since the students of a cohort run on the first view only.
    """

    second_view = True

    def __init__(self, source: Source) -> None:
        if source.reads:
            raise TutelageError(
                f"{type(source).__name__} returns outputs for the first view; give a source with networks of its own"
            )
        self.source, self.models = source, source.models

    def __call__(self, batch: Batch, roles: Collection[str] = ("logits",), cohort: Cohort = NO_COHORT) -> Outputs:
        """Return the source's outputs for ``batch.second``."""
        if batch.second is None:
            raise TutelageError(
                "SecondView needs a batch with a second view, which this view of a term does not give; give its terms "
                "another source"
            )
        return self.source(replace(batch, inputs=batch.second, key=None), roles, cohort)

    def after_step(self) -> None:
        """Call the source's ``after_step``."""
        self.source.after_step()

    def state_dict(self) -> dict[str, Any]:
        """The state of the source."""
        return self.source.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the source's state."""
        self.source.load_state_dict(state)
