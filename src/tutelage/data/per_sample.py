"""A state for each training sample, looked up by its index."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tutelage.data.data import Split
from tutelage.errors import TutelageError


class PerSample(nn.Module):
    """A row of values for each sample of a split.

    A sample is identified by its ``Split.index``, which is not a row number: the split may be a subset, or its samples
    may have the numbers of a published set.

    Args:
        split: the split.
        values: (N, ...), a row a sample, in the split's order.

    Attributes:
        values: (N, ...), a buffer, kept in checkpoints.
    """

    values: Tensor
    sorted_index: Tensor
    order: Tensor

    def __init__(self, split: Split, values: Tensor) -> None:
        super().__init__()
        if len(values) != len(split):
            raise ValueError(f"{len(split)} samples need as many rows of values, got {len(values)}")
        sorted_index, order = split.index.sort()
        if bool((sorted_index[1:] == sorted_index[:-1]).any()):
            twice = int(sorted_index[1:][sorted_index[1:] == sorted_index[:-1]][0])
            raise TutelageError(
                f"sample {twice} is in the training split twice; a state per sample needs each one once"
            )
        self.register_buffer("values", values.clone())
        self.register_buffer("sorted_index", sorted_index.clone(), persistent=False)
        self.register_buffer("order", order, persistent=False)

    def rows(self, index: Tensor) -> Tensor:
        """The rows of these samples in ``values``: (B,) ``Batch.index`` to (B,) int64, both on the same device."""
        return self.order[torch.searchsorted(self.sorted_index, index)]
