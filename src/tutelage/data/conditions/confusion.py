"""Label noise that follows what a network confuses: its confusion matrix, or its probabilities for each sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.data.conditions.condition import Labels, Relabelling, stream
from tutelage.data.conditions.exact import check_rate, drawn, eligible
from tutelage.data.conditions.files import read_matrix
from tutelage.data.data import Data
from tutelage.errors import TutelageError

Matrix = str | Path | Sequence[Sequence[float]] | NDArray[np.float64]


def confusion_of(matrix: Matrix, rows: int, columns: int, what: str) -> NDArray[np.float64]:
    """A confusion matrix of this shape, from a file or as it is.

    Raises:
        TutelageError: another shape, or a negative or infinite number.
    """
    values = read_matrix(matrix) if isinstance(matrix, str | Path) else np.asarray(matrix, dtype=np.float64)
    if values.shape != (rows, columns):
        raise TutelageError(f"{what} is {rows} x {columns}, got shape {values.shape}; give a number for each pair")
    if not (np.isfinite(values) & (values >= 0)).all():
        raise TutelageError(f"{what} has counts of 0 or more, got {values.min():g} to {values.max():g}; check the file")
    return values


def choose(weights: NDArray[np.float64], draws: NDArray[np.float64]) -> Labels:
    """A column for each row of weights (B, C), at random in proportion to them, by draws (B,) in [0, 1)."""
    up_to = weights.cumsum(1)
    chosen: Labels = (up_to <= (draws * up_to[:, -1])[:, None]).sum(1)
    return chosen


@dataclass(frozen=True)
class ConfusionNoise(Relabelling):
    """Exactly ``rate`` of the labels become another class, drawn by a confusion matrix.

    The new label of a sample of class c is k != c with a probability in proportion to matrix[c, k]: the rows of the
    matrix, without its diagonal, are normalised. (The non-uniform in-distribution noise of Ortego et al. 2020, arXiv
    1912.08741, who take the confusion matrix of a pretrained network.)

    Attributes:
        rate: the share of the labels that change, rounded to a whole number of samples.
        matrix: C x C counts or probabilities, row: the class, column: the prediction; or a file of them.
        seed: of the draws. A higher rate changes the labels of a lower one and more.
    """

    rate: float
    matrix: Matrix
    seed: int = 0

    def __post_init__(self) -> None:
        check_rate(self.rate)

    def _relabel(self, data: Data, before: Labels) -> Labels:
        size = data.num_classes
        matrix = confusion_of(self.matrix, size, size, "the confusion matrix").copy()
        np.fill_diagonal(matrix, 0)
        generator = stream("ConfusionNoise", self.seed)
        draws = generator.random(len(before))
        rows = drawn(eligible(data, before), self.rate, generator)
        if (never := matrix[before[rows]].sum(1) == 0).any():
            name = data.classes[before[rows][never].min()]
            raise TutelageError(
                f"the confusion matrix never confuses the class {name!r}, so its labels cannot change; "
                "add a small number to the matrix"
            )
        after = before.copy()
        after[rows] = choose(matrix[before[rows]], draws[rows])
        return after

    def _settings(self) -> dict[str, Any]:
        matrix = str(self.matrix) if isinstance(self.matrix, str | Path) else np.asarray(self.matrix).tolist()
        return {"rate": float(self.rate), "matrix": matrix, "seed": self.seed}


@dataclass(frozen=True)
class FeatureNoise(Relabelling):
    """Feature-dependent noise: exactly ``rate`` of the labels change, those of the samples closest to another class.

    A network's class probabilities say which these are: first the samples whose label it does not predict, then those
    with the most probable other class; within both, larger probabilities of the other class come first [inferred]. The
    label becomes the most probable class other than it. No random numbers are drawn. (Algan, Ulusoy 2020, arXiv
    2003.10471, who take the probabilities of a distilled network.)

    Attributes:
        rate: the share of the labels that change, rounded to a whole number of samples.
        probabilities: (M, C), row i for the sample whose ``index`` is i; or a file of them.
    """

    rate: float
    probabilities: Matrix

    def __post_init__(self) -> None:
        check_rate(self.rate)

    def _relabel(self, data: Data, before: Labels) -> Labels:
        index = data.train.index.cpu().numpy()
        values = self.probabilities
        values = read_matrix(values) if isinstance(values, str | Path) else np.asarray(values, dtype=np.float64)
        if values.ndim != 2 or values.shape[1] != data.num_classes or len(values) <= index.max():
            raise TutelageError(
                f"the probabilities for FeatureNoise are of shape {values.shape}, and {data.name} needs "
                f"({index.max() + 1} or more, {data.num_classes}): a row for each sample of the original training split"
            )
        rows = eligible(data, before)
        labels, own = before[rows], values[index[rows]].copy()
        given = own[np.arange(len(rows)), labels]
        own[np.arange(len(rows)), labels] = -np.inf
        other, largest = own.argmax(1), own.max(1)
        order = np.lexsort((-largest, largest <= given))[: round(self.rate * len(rows))]
        after = before.copy()
        after[rows[order]] = other[order]
        return after

    def _settings(self) -> dict[str, Any]:
        named = isinstance(self.probabilities, str | Path)
        return {"rate": float(self.rate), "probabilities": str(self.probabilities) if named else "an array"}
