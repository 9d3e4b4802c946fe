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
from tutelage.data.orders import Order
from tutelage.training.execution import Execution
from tutelage.training.learner import Learner


@dataclass(frozen=True, slots=True)
class Streams:
    """The batches of a fit.

    Attributes:
        epochs: the batches of the training split, epoch by epoch.
        others: further streams by name, functions of the step's number.
    """

    epochs: Batches
    others: Mapping[str, Callable[[int], Batch]]

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
        """The streams of a data set, and of further splits, for these learners."""
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
        return cls(batches(data.train, seed=seed, order=order, second=second), others)
