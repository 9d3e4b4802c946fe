"""Subsets with the same number of samples of each class."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import numpy as np
import torch

from tutelage.data.conditions.condition import clean_classes, stream
from tutelage.data.data import Data
from tutelage.data.stratified import ranks_in_strata
from tutelage.errors import TutelageError


@dataclass(frozen=True)
class Subset:
    """Only ``per_class`` training samples of each class, drawn at random and kept in their order.

    Classes are the clean ones, so that a subset is the same before and after noise. Soft labels count for their
    largest class; unlabelled samples are left out. With the same seed a larger subset contains the smaller one.
    """

    per_class: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.per_class < 1:
            raise TutelageError(f"a subset needs 1 sample of each class or more, got {self.per_class}")

    def __call__(self, data: Data) -> Data:
        """The data set with the smaller training split."""
        labels, counts = clean_classes(data, type(self).__name__)
        if min(counts) < self.per_class:
            rarest = int(np.argmin(counts))
            raise TutelageError(
                f"the class {data.classes[rarest]!r} of {data.name} has {counts[rarest]} training samples, "
                f"fewer than the {self.per_class} requested; request fewer or add samples of it"
            )
        ranks = ranks_in_strata(labels, stream("Subset", self.seed))
        indices = torch.from_numpy(np.flatnonzero((ranks < self.per_class) & (labels >= 0)))
        entry = {"condition": "Subset", **asdict(self), "samples_before": len(labels), "samples": len(indices)}
        return replace(data, train=data.train.subset(indices), record=(*data.record, entry))
