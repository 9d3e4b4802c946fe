"""The student itself: what one part of it gives teaches another."""

from __future__ import annotations

from collections.abc import Collection

from tutelage.data.batch import Batch
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped, check_tapped
from tutelage.sources.source import NO_COHORT, Cohort, Source


class OwnOutputs(Source):
    """What the learner's own model gave for this batch, detached: its ensemble, or its last layer, as a target.

    Args:
        model: the learner's model.

    Raises:
        TutelageError: it is a bare ``nn.Module``.
    """

    def __init__(self, model: Tapped) -> None:
        check_tapped("OwnOutputs", model)
        self.reads = (model,)

    def __call__(self, batch: Batch, roles: Collection[str] = ("logits",), cohort: Cohort = NO_COHORT) -> Outputs:
        """The model's outputs for this batch."""
        if self.reads[0] not in cohort:
            raise ValueError("a model teaches itself on the batch at hand alone, and as a learner of this fit")
        return cohort[self.reads[0]].detach()
