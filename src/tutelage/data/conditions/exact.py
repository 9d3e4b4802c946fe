"""Noise of an exact number of samples."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tutelage.data.conditions.condition import Labels
from tutelage.data.data import Data
from tutelage.errors import TutelageError


def check_rate(rate: object) -> None:
    """Refuse what is not a number from 0 to 1.

    Raises:
        TutelageError: with the value.
    """
    if not isinstance(rate, (float, int, np.floating)) or not 0 <= rate <= 1:  # refuses NaN too
        raise TutelageError(f"a noise rate is a number from 0 to 1, got {rate!r}")


def eligible(data: Data, labels: Labels) -> NDArray[np.int64]:
    """The rows of the samples that noise may change: they have a label, and it was not verified."""
    allowed = labels >= 0
    if data.train.trusted is not None:
        allowed &= ~data.train.trusted.cpu().numpy()
    return np.flatnonzero(allowed)


def drawn(rows: NDArray[np.int64], rate: float, generator: np.random.Generator) -> NDArray[np.int64]:
    """Exactly round(rate N) of N rows, at random; a higher rate draws those of a lower one and more."""
    return rows[generator.permutation(len(rows))[: round(rate * len(rows))]]
