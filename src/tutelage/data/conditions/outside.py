"""Out-of-distribution noise: images of something else under the labels of the data set."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.data.batch import UNLABELLED
from tutelage.data.conditions.condition import Labels, check_single_label, stream
from tutelage.data.conditions.confusion import Matrix, choose, confusion_of
from tutelage.data.conditions.exact import check_rate, drawn, eligible
from tutelage.data.data import Data
from tutelage.data.open import open_data
from tutelage.errors import TutelageError


@dataclass(frozen=True)
class OutsideImages:
    """Out-of-distribution noise: exactly ``rate`` of the training images are replaced, and their labels stay.

    The new images are training images of another data set, whose classes are none of this one's: no label would be
    right, so the clean label of these samples becomes -1 (``Split.corrupted`` is true for them). (Ortego et al. 2020,
    arXiv 1912.08741; there the outside images are other classes of the same set.)

    Attributes:
        rate: the share of the labelled samples whose image is replaced, rounded to a whole number.
        outside: the other data set, or its name for ``open_data``; images in memory of the same shape.
        seed: of the draws. A higher rate replaces the images of a lower one and more.
        confusion: counts or probabilities, row: a class of the other set, column: a class of this one, which a network
            predicts for its images; or a file of them. An image under the label k is then of class o with a probability
            in proportion to confusion[o, k] (non-uniform noise). ``None`` draws from all images alike.
    """

    rate: float
    outside: Data | str | os.PathLike[str]
    seed: int = 0
    confusion: Matrix | None = None

    def __post_init__(self) -> None:
        check_rate(self.rate)

    def __call__(self, data: Data) -> Data:
        """The data set with other training images, and what was replaced in its record."""
        check_single_label(data, "OutsideImages")
        other = open_data(self.outside)
        inputs, pool = self._images(data), self._images(other)
        if inputs.shape[1:] != pool.shape[1:] or data.train.modality != other.train.modality:
            raise TutelageError(
                f"OutsideImages replaces {data.train.modality.noun} of shape {tuple(inputs.shape[1:])} in {data.name}, "
                f"and those of {other.name} are of shape {tuple(pool.shape[1:])}; give a data set of the same shape"
            )
        labels = data.targets.classes(data.train.labels).cpu().numpy()
        generator = stream("OutsideImages", self.seed)
        rows = drawn(eligible(data, labels), self.rate, generator)
        chosen = self._chosen(labels[rows], data, other, generator)
        places = torch.from_numpy(rows)
        train = replace(
            data.train,
            inputs=inputs.index_copy(0, places.to(inputs.device), pool[torch.from_numpy(chosen)].to(inputs.device)),
            clean_labels=data.train.clean_labels.index_fill(0, places.to(data.train.labels.device), UNLABELLED),
        )
        entry = {
            "condition": "OutsideImages",
            "rate": float(self.rate),
            "seed": self.seed,
            "outside": other.name,
            "confusion": _text(self.confusion),
            "replaced": len(rows),
            "realised_rate": len(rows) / max(1, int((labels >= 0).sum())),
        }
        return replace(data, train=train, record=(*data.record, entry))

    def _images(self, data: Data) -> Tensor:
        if not isinstance(data.train.inputs, Tensor):
            raise TutelageError(
                f"OutsideImages needs images in memory, and those of {data.name} are files; save them as npz:FILE"
            )
        return data.train.inputs

    def _chosen(self, labels: Labels, data: Data, other: Data, generator: np.random.Generator) -> NDArray[np.int64]:
        """The row of the outside image for each of these labels (M,); each image once while there are enough."""
        size = len(other.train)
        if self.confusion is None:
            repeats = -(-max(len(labels), 1) // size)
            return np.concatenate([generator.permutation(size) for _ in range(repeats)])[: len(labels)]
        matrix = confusion_of(self.confusion, other.num_classes, data.num_classes, "the confusion of OutsideImages")
        outside = other.targets.classes(other.train.labels).cpu().numpy()
        present = np.bincount(outside[outside >= 0], minlength=other.num_classes) > 0
        weights = (matrix * present[:, None]).T[labels]  # (M, outside classes)
        if (never := weights.sum(1) == 0).any():
            name = data.classes[labels[never].min()]
            raise TutelageError(
                f"the confusion of OutsideImages has no outside class for {name!r}; add a small number to the matrix"
            )
        classes = choose(weights, generator.random(len(labels)))
        rows = np.zeros(len(labels), np.int64)
        for outside_class in np.unique(classes).tolist():
            members = np.flatnonzero(classes == outside_class)
            rows[members] = generator.choice(np.flatnonzero(outside == outside_class), len(members))
        return rows


def _text(confusion: Matrix | None) -> object:
    """The confusion for the record."""
    if confusion is None or isinstance(confusion, str | Path):
        return None if confusion is None else str(confusion)
    return np.asarray(confusion).tolist()
