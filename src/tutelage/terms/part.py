"""The two parts of a batch, each of which the networks run on separately."""

from __future__ import annotations

from tutelage.data.batch import Batch
from tutelage.models.outputs import Outputs
from tutelage.terms.term import View


class Part(View):
    """The first samples of each batch, or the others.

    Args:
        first: the number of samples of the first part. A batch that has no more, as in the dry run, is halved.
        others: whether the view is the second part.
    """

    def __init__(self, first: int, *, others: bool = False) -> None:
        if first < 1:
            raise ValueError(f"the first part of a batch has at least one sample, got {first}")
        self.first, self.others = first, others

    def __call__(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> Batch:
        """The samples of the part."""
        cut = self.first if self.first < len(batch) else len(batch) // 2
        return batch.rows(slice(cut, None) if self.others else slice(cut))
