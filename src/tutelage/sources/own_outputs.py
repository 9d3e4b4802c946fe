"""The student's own outputs as teacher outputs, for self-distillation."""

from __future__ import annotations

from collections.abc import Collection

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped, check_tapped
from tutelage.sources.source import NO_COHORT, Cohort, Source


class OwnOutputs(Source):
    """The outputs of the learner's own model for the batch, detached, for example its ensemble or its last layer.

    Args:
        model: the learner's model.

    Raises:
        TutelageError: the model is a bare ``nn.Module``.
    """

    def __init__(self, model: Tapped) -> None:
        check_tapped("OwnOutputs", model)
        self.reads = (model,)

    def __call__(self, batch: Batch, roles: Collection[str] = ("logits",), cohort: Cohort = NO_COHORT) -> Outputs:
        """Return the model's outputs for the current batch."""
        if self.reads[0] not in cohort:
            raise TutelageError(
                "OwnOutputs has only the outputs for the current batch, of a learner of this fit; give terms on a view "
                "another source"
            )
        return cohort[self.reads[0]].detach()
