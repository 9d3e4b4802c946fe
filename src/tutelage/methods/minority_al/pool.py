"""A pool of samples whose labels are hidden until they are requested."""

from __future__ import annotations

import torch
from torch import Tensor

from tutelage.data.batch import UNLABELLED

NEVER = -1


class Pool:
    """Samples and the labels requested so far.

    Args:
        labels: (N,) int64 class numbers. Samples without a label (-1) cannot be requested.

    Attributes:
        labels: (N,) int64, -1 for a label that was not requested.
        round: (N,) int64, the number of the request, from 0, in which each label was requested; -1 for none.
        requests: the number of requests.
    """

    def __init__(self, labels: Tensor) -> None:
        self._hidden = labels
        self.labels = torch.full_like(labels, UNLABELLED)
        self.round = torch.full_like(labels, NEVER)
        self.requests = 0

    @property
    def labelled(self) -> Tensor:
        """The sorted indices of the samples whose labels were requested."""
        return (self.round != NEVER).nonzero()[:, 0]

    @property
    def candidates(self) -> Tensor:
        """The sorted indices of the samples whose labels can be requested."""
        return ((self.round == NEVER) & (self._hidden != UNLABELLED)).nonzero()[:, 0]

    def counts(self, num_classes: int) -> Tensor:
        """How many labels of each class were requested, (C,) int64."""
        return self.labels[self.labelled].bincount(minlength=num_classes)

    def request(self, indices: Tensor) -> Tensor:
        """Request labels, and return them.

        Args:
            indices: distinct indices of candidates, (M,).

        Raises:
            ValueError: an index is no candidate or occurs twice.
        """
        if not bool(torch.isin(indices, self.candidates).all()) or len(set(indices.tolist())) < len(indices):
            raise ValueError("only labels of distinct candidates can be requested")
        self.labels[indices] = self._hidden[indices]
        self.round[indices] = self.requests
        self.requests += 1
        return self.labels[indices]
