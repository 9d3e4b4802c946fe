"""The batches of a fit: those of its epochs, and further streams for update rules."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from tutelage.config import Recipe
from tutelage.data.batch import Batch
from tutelage.data.data import Data, Split
from tutelage.data.loader import Batches, mix_seeds
from tutelage.data.orders import Order, class_balanced, shuffled
from tutelage.errors import TutelageError
from tutelage.training.batch_changes import BatchChanges, check_parts
from tutelage.training.execution import Execution
from tutelage.training.learner import Learner


@dataclass(frozen=True, slots=True)
class Streams:
    """The batches of a fit.

    Attributes:
        epochs: the batches of the training split, epoch by epoch.
        others: further streams by name, functions of the step's number.
        changes: what the recipe changes in a batch of the epochs.
    """

    epochs: Batches
    others: Mapping[str, Callable[[int], Batch]]
    changes: BatchChanges

    @classmethod
    def of(
        cls,
        data: Data,
        recipe: Recipe,
        learners: Sequence[Learner],
        execution: Execution,
        *,
        seed: int,
        order: Order,
        streams: Mapping[str, Split],
    ) -> Streams:
        """The streams of a data set, and of further splits, for these learners.

        Raises:
            TutelageError: the batches cannot be made as the recipe says.
        """
        hardware, processes = execution.hardware, execution.processes
        batches = partial(
            Batches,
            batch_size=recipe.batch_size,
            views=data.views,
            device=execution.device,
            rank=processes.rank,
            world=processes.world,
            workers=hardware.workers,
            layout=torch.channels_last if hardware.channels_last else torch.contiguous_format,
        )
        second = any(learner.source is not None and learner.source.second_view for learner in learners)
        others = {
            name: batches(split, seed=mix_seeds(seed, 4, zlib.crc32(name.encode()))).at
            for name, split in streams.items()
        }
        if recipe.class_balanced:
            if order is not shuffled or not data.targets.single_label:
                reason = (
                    "this method forms its batches in another way"
                    if data.targets.single_label
                    else (f"{data.name} has {data.targets.noun} for labels, and not one class for each sample")
                )
                raise TutelageError(f"class_balanced cannot be used: {reason}; leave it out")
            order = class_balanced
        epochs = batches(data.train, seed=seed, order=order, second=second)
        check_parts(epochs, recipe)
        return cls(epochs, others, BatchChanges.of(recipe, data, execution, seed))
