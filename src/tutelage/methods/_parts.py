"""Batches of labelled and unlabelled samples, for semi-supervised methods."""

from __future__ import annotations

from dataclasses import dataclass

from tutelage.data.batch import UNLABELLED
from tutelage.data.orders import LabelledFirst
from tutelage.terms.part import Part
from tutelage.training.run import Run


@dataclass(frozen=True, slots=True)
class LabelledParts:
    """The two parts of a run's batches. If all samples have a label, or none has, both are the whole batch.

    Attributes:
        order: makes the batches.
        labelled, unlabelled: the views of the parts; ``None`` for the whole batch.
        share: of the labelled part in the batch; 0 without parts.
    """

    order: LabelledFirst
    labelled: Part | None
    unlabelled: Part | None
    share: float


def labelled_parts(run: Run, share: float) -> LabelledParts:
    """Divide the batches of a run.

    Args:
        run: the run.
        share: of the samples of a batch that have a label, rounded to at least one sample of each process.
    """
    labels, world = run.data.train.labels, run.processes.world
    size = min(run.recipe.batch_size, len(labels) // world * world)
    first = max(1, round(share * size / world))  # in each process
    order = LabelledFirst(first * world)
    has_label = labels != UNLABELLED
    if labels.ndim > 1 or bool(has_label.all()) or not bool(has_label.any()):
        return LabelledParts(order, None, None, 0.0)
    return LabelledParts(order, Part(first), Part(first, others=True), first * world / size)
