"""Verified labels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from tutelage.data.conditions.condition import check_single_label, clean_classes, stream
from tutelage.data.data import Data
from tutelage.errors import TutelageError


@dataclass(frozen=True)
class Trusted:
    """``per_class`` samples of each class get their clean label and are marked as trusted, as if verified by a person.

    They stay in the training split, where every method sees them with that label; noise that is applied later
    does not change them. Of a class with fewer samples all are marked, but no sample whose clean label is unknown.

    Attributes:
        per_class: trusted samples of each clean class.
        seed: the seed of their selection.
    """

    per_class: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.per_class < 1:
            raise TutelageError(f"trusted samples are 1 or more of each class, got {self.per_class}")

    def __call__(self, data: Data) -> Data:
        """The data set with these samples marked in ``train.trusted``."""
        check_single_label(data, type(self).__name__)
        if data.train.labels.ndim != 1:
            raise TutelageError(
                f"Trusted needs hard labels, and those of {data.name} are soft, of shape "
                f"{tuple(data.train.labels.shape)}; take their arg-max first"
            )
        classes, _ = clean_classes(data, type(self).__name__)
        has_clean_label = data.train.clean_labels.cpu().numpy() >= 0
        order = stream("Trusted", self.seed).permutation(len(classes))
        indices = np.concatenate(
            [
                order[(classes[order] == label) & has_clean_label[order]][: self.per_class]
                for label in range(data.num_classes)
            ]
        )
        selected = torch.zeros(len(classes), dtype=torch.bool)
        selected[torch.from_numpy(indices)] = True
        selected = selected.to(data.train.labels.device)
        labels = data.train.clean_labels.where(selected, data.train.labels)
        entry = {
            "condition": "Trusted",
            "per_class": self.per_class,
            "seed": self.seed,
            "samples": int(selected.sum()),
            "corrected": int((labels != data.train.labels).sum()),
        }
        before = data.train.trusted
        trusted = selected if before is None else selected | before
        train = replace(data.train, labels=labels, trusted=trusted)
        return replace(data, train=train, record=(*data.record, entry))
