"""Labels that are true but imprecise: a group of classes in place of a class."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch

from tutelage.data.conditions.condition import Labels, check_single_label, stream
from tutelage.data.data import Data
from tutelage.data.hierarchy import Hierarchy
from tutelage.errors import TutelageError, unknown

Model = Literal["parent", "geometric", "poisson"]


@dataclass(frozen=True)
class Imprecise:
    """Replace labels by nodes above them in a hierarchy of classes.

    An imprecise label is stored as a soft label: a uniform distribution over the classes below the node, (C,). It
    counts as no label in accuracies, and as true: it is not in ``Split.corrupted``.

    Attributes:
        file: the hierarchy, see ``Hierarchy.read``.
        value: of the model.
        model: which node replaces a label; depths count from the root, along the first parents:
            "parent": with the probability ``value`` the parent (Deng et al. 2014 [from memory]);
            "geometric": the depth is drawn from {0, 1, 2, ..}, with the probability (1 - value) value^depth, and is at
            most that of the class; "poisson": the same with a Poisson distribution of the mean ``value``. (Brust, Barz,
            Denzler 2020, arXiv 2010.06469, their code.)
        seed: of the draws.

    Raises:
        TutelageError: a value outside [0, 1], or below 0 for "poisson".
    """

    file: str | Path
    value: float
    model: Model = "parent"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.model not in get_args(Model):
            raise unknown("model of imprecise labels", self.model, get_args(Model))
        largest = 1e6 if self.model == "poisson" else 1
        if not 0 <= self.value <= largest:
            raise TutelageError(
                f"imprecise labels ({self.model}) need a number from 0 to {largest:g}, got {self.value!r}"
            )

    def __call__(self, data: Data) -> Data:
        """The data set with soft training labels; trusted labels stay precise."""
        check_single_label(data, "Imprecise")
        train = data.train
        if train.labels.ndim != 1:
            raise TutelageError(f"Imprecise needs hard labels, and those of {data.name} are soft; apply it first")
        hierarchy = Hierarchy.read(self.file, data.classes)
        labels = train.labels.cpu()
        nodes = self._nodes(hierarchy, labels.numpy())
        if train.trusted is not None:
            nodes = np.where(train.trusted.cpu().numpy(), labels.numpy(), nodes)
        sets = torch.cat([hierarchy.below.float(), torch.zeros(1, data.num_classes)])[torch.from_numpy(nodes)]
        soft = sets / sets.sum(1, keepdim=True).clamp_min(1)
        entry = {
            "condition": "Imprecise",
            "file": str(self.file),
            "value": self.value,
            "model": self.model,
            "seed": self.seed,
            "labelled": int((nodes >= 0).sum()),
            "changed": int((nodes != labels.numpy()).sum()),
        }
        changed = replace(train, labels=soft.to(train.labels.device))
        return replace(data, train=changed, record=(*data.record, entry))

    def _nodes(self, hierarchy: Hierarchy, labels: Labels) -> Labels:
        """The node of each sample, (N,); -1 for no label."""
        generator, size = stream("Imprecise", self.seed), len(labels)
        paths = [hierarchy.path(label) for label in range(hierarchy.classes)]
        if self.model == "parent":
            draws = generator.random(size)
            depths = np.array([len(path) - 1 for path in paths])[labels] - (draws < self.value)
        elif self.model == "poisson":
            depths = generator.poisson(self.value, size)
        elif self.value == 1:
            depths = np.full(size, len(hierarchy))
        else:
            depths = generator.geometric(1 - self.value, size) - 1
        return np.array(
            [
                -1 if label < 0 else paths[label][min(depth, len(paths[label]) - 1)]
                for label, depth in zip(labels.tolist(), depths.tolist(), strict=True)
            ]
        )
