"""Label noise that does not depend on the image, and missing labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tutelage.data.conditions.condition import Labels, Relabelling, stream
from tutelage.data.conditions.exact import check_rate
from tutelage.data.conditions.files import read_matrix
from tutelage.data.data import Data
from tutelage.errors import TutelageError

SUM_TOLERANCE = 1e-3  # of a row of probabilities, as written with three digits or more


@dataclass(frozen=True)
class LabelNoise(Relabelling):
    """Each label changes independently with probability ``rate``.

    Unlabelled samples stay unlabelled. The same seed always changes the same samples, and a higher rate changes
    those of a lower rate and more.
    """

    rate: float
    seed: int = 0

    def __post_init__(self) -> None:
        check_rate(self.rate)

    def _redraw(self, generator: np.random.Generator, labels: Labels, num_classes: int) -> Labels:
        """The new label (N,) of each sample, if it changes."""
        raise NotImplementedError(f"{type(self).__name__} must define _redraw()")

    def _relabel(self, data: Data, before: Labels) -> Labels:
        generator = stream(type(self).__name__, self.seed)
        flips = (generator.random(len(before)) < self.rate) & (before >= 0)
        return np.where(flips, self._redraw(generator, before, data.num_classes), before)

    def _settings(self) -> dict[str, Any]:
        return {"rate": float(self.rate), "seed": self.seed}


@dataclass(frozen=True)
class SymmetricNoise(LabelNoise):
    """With probability ``rate`` a label becomes one of the *other* C - 1 classes, all equally likely.

    The convention of Co-teaching (Han et al. 2018, arXiv 1804.06872) and of most papers since: about ``rate``
    of the labels are wrong. ``UniformNoise`` is the other convention that is called symmetric noise.
    """

    def _redraw(self, generator: np.random.Generator, labels: Labels, num_classes: int) -> Labels:
        return (labels + generator.integers(1, num_classes, len(labels))) % num_classes


@dataclass(frozen=True)
class UniformNoise(LabelNoise):
    """With probability ``rate`` a label is drawn anew from *all* C classes, its own included.

    The convention of Zhang et al. (2017, arXiv 1611.03530) and of the library of Sarfraz et al. (their
    ``CIFAR10RandomLabels``): about ``rate`` (C - 1) / C of the labels are wrong. ``SymmetricNoise`` is the
    other convention.
    """

    def _redraw(self, generator: np.random.Generator, labels: Labels, num_classes: int) -> Labels:
        return generator.integers(0, num_classes, len(labels))


@dataclass(frozen=True)
class PairFlip(LabelNoise):
    """With probability ``rate`` a label c becomes the next one, c + 1, and the last class becomes the first.

    The pair flipping of Co-teaching (Han et al. 2018, arXiv 1804.06872). Each class is mistaken for one other class
    only, so that from a rate of 0.5 on the right label is no longer the most frequent one.
    """

    def _redraw(self, generator: np.random.Generator, labels: Labels, num_classes: int) -> Labels:
        return (labels + 1) % num_classes


@dataclass(frozen=True)
class MissingLabels(LabelNoise):
    """With probability ``rate`` a label is removed: it becomes -1, and terms that read labels skip the sample.

    The selection does not depend on the label. Clean labels stay, and a missing label does not count as wrong. In the
    record ``changed`` is the number of removed labels, and the transitions are those of the remaining ones.

    Of other targets than classes, such as masks, all of a sample's label is removed, unless a sample without a label
    would mean something else, as an image without boxes does.
    """

    def __call__(self, data: Data) -> Data:
        """The data set without these training labels, and the realised rate in its record."""
        targets, train = data.targets, data.train
        if targets.single_label:
            return super().__call__(data)
        if targets.unknown is None:
            raise TutelageError(
                f"{targets.noun} of {data.name} cannot be missing, since a sample without any counts as labelled (for "
                "example as an image without objects); leave the condition out"
            )
        labelled = targets.labelled(train.labels).cpu()
        drawn = torch.from_numpy(stream(type(self).__name__, self.seed).random(len(train)) < self.rate)
        removed = drawn & labelled
        if train.trusted is not None:
            removed &= ~train.trusted.cpu()
        labels = train.labels.clone()
        labels[removed.to(labels.device)] = targets.unknown
        entry = {
            "condition": type(self).__name__,
            **self._settings(),
            "labelled": int(labelled.sum()),
            "changed": int(removed.sum()),
            "realised_rate": int(removed.sum()) / max(1, int(labelled.sum())),
            "validation": "absent" if data.validation is None else "left clean",
        }
        return replace(data, train=replace(train, labels=labels), record=(*data.record, entry))

    def _redraw(self, generator: np.random.Generator, labels: Labels, num_classes: int) -> Labels:
        return np.full_like(labels, -1)


@dataclass(frozen=True)
class AsymmetricNoise(Relabelling):
    """A label c becomes k with probability T[c, k], independently of all else.

    Unlabelled samples stay unlabelled, and the same seed always draws the same labels. (Patrini et al. 2017, arXiv
    1609.03683, and many others; what is called asymmetric noise on CIFAR-10 is one such matrix.)

    Attributes:
        matrix: C x C, row c the distribution over the classes that a label c becomes. Rows may be off 1 by 0.001,
            as rounded numbers are, and are scaled to 1 when drawn from.
        seed: of the draws.
    """

    matrix: Sequence[Sequence[float]] | NDArray[np.float64]
    seed: int = 0

    def __post_init__(self) -> None:
        try:
            matrix = np.asarray(self.matrix, dtype=np.float64)
        except (ValueError, TypeError) as error:
            raise TutelageError(
                f"a transition matrix is C rows of C numbers, got {self.matrix!r:.80}; give nested lists or an array"
            ) from error
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) < 2:
            raise TutelageError(
                f"a transition matrix is C x C with a row for each of 2 classes or more, got shape {matrix.shape}"
            )
        if (bad := ~((matrix >= 0) & (matrix < math.inf))).any():
            row, column = (int(position) for position in np.argwhere(bad)[0])
            raise TutelageError(
                f"the transition matrix is {matrix[row, column]} at row {row}, column {column}; "
                "probabilities are 0 or more"
            )
        sums = matrix.sum(1)
        if (off := np.abs(sums - 1) > SUM_TOLERANCE).any():
            row = int(off.argmax())
            raise TutelageError(
                f"row {row} of the transition matrix sums to {sums[row]:.6g}; every row sums to 1 "
                "(row c holds the probabilities of the noisy label of class c)"
            )
        object.__setattr__(self, "matrix", tuple(map(tuple, matrix.tolist())))  # so that equal values are equal

    @classmethod
    def read(cls, file: str | Path, seed: int = 0) -> AsymmetricNoise:
        """The noise of the matrix in a file: ``.csv`` without header, ``.npy`` (never unpickled), ``.json`` (lists).

        Raises:
            TutelageError: the file cannot be read, or its content is not a transition matrix.
        """
        matrix = read_matrix(file)
        try:
            return cls(matrix, seed)
        except TutelageError as error:
            raise TutelageError(f"{file}: {error}") from error

    def _relabel(self, data: Data, before: Labels) -> Labels:
        matrix = np.array(self.matrix)
        if len(matrix) != data.num_classes:
            raise TutelageError(
                f"the transition matrix is {len(matrix)} x {len(matrix)}, and {data.name} has {data.num_classes} "
                "classes; give it a row and a column for each"
            )
        up_to = matrix.cumsum(1)
        up_to /= up_to[:, -1:]
        draws = stream("AsymmetricNoise", self.seed).random(len(before))
        classes = (up_to[before] <= draws[:, None]).sum(1)
        return np.where(before >= 0, classes, before)

    def _settings(self) -> dict[str, Any]:
        return {"matrix": np.array(self.matrix).tolist(), "seed": self.seed}
