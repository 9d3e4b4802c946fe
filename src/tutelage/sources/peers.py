"""The other students of a cohort as teachers."""

from __future__ import annotations

from collections.abc import Collection

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped, check_tapped
from tutelage.sources.source import NO_COHORT, Cohort, Source


class Peers(Source):
    """The outputs of students that are trained with the learner, detached.

    They are not computed again: the update rule determines whether they are from before or after the peers' own step.
    With more than one peer, their probabilities are averaged, and ``members`` holds each one's outputs.

    Args:
        peers: the other learners' models.

    Raises:
        TutelageError: a peer is a bare ``nn.Module``.
    """

    def __init__(self, *peers: Tapped) -> None:
        if not peers:
            raise TutelageError("Peers needs at least one other model, got none; give it the other learners' models")
        check_tapped("Peers", *peers)
        self.reads = peers

    def __call__(self, batch: Batch, roles: Collection[str] = ("logits",), cohort: Cohort = NO_COHORT) -> Outputs:
        """Return the peers' outputs for the current batch."""
        if not cohort:
            raise TutelageError("Peers has only the outputs for the current batch; give terms on a view another source")
        absent = [peer for peer in self.reads if peer not in cohort]
        if absent:
            raise TutelageError(
                f"{len(absent)} of {len(self.reads)} peers are not learners of this fit; fit them together"
            )
        return Outputs.ensemble(tuple(cohort[peer].detach() for peer in self.reads))
