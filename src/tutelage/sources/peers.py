"""The other students of a cohort."""

from __future__ import annotations

from collections.abc import Collection

from tutelage.data.batch import Batch
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped, check_tapped
from tutelage.sources.source import NO_COHORT, Cohort, Source


class Peers(Source):
    """Students that train beside the learner; what they gave for this batch teaches it, detached.

    The learner never computes them again: the update rule says whether it sees their outputs from before or after
    their own step. With more than one peer, ``members`` holds each one's outputs.

    Args:
        peers: the other learners' models.

    Raises:
        TutelageError: one of them is a bare ``nn.Module``.
    """

    def __init__(self, *peers: Tapped) -> None:
        if not peers:
            raise ValueError("Peers needs at least one other model")
        check_tapped("Peers", *peers)
        self.reads = peers

    def __call__(self, batch: Batch, roles: Collection[str] = ("logits",), cohort: Cohort = NO_COHORT) -> Outputs:
        """The peers' outputs for this batch."""
        if not cohort:
            raise ValueError("peers answer the batch at hand alone; terms on a view need another source")
        absent = [peer for peer in self.reads if peer not in cohort]
        if absent:
            raise ValueError(f"{len(absent)} of {len(self.reads)} peers are no learners of this fit; fit them together")
        return Outputs.ensemble(tuple(cohort[peer].detach() for peer in self.reads))
