"""Linear redundancy of a layer's units: how well each is a linear combination of the others.

With the activations Z (n, d) of a layer's units as columns, possibly with a constant column, let
P = (Z'Z + lambda I)^-1. The regression of column i on all others has the coefficients A[k, i] = -P[k, i] / P[i, i] and
the squared residual 1 / P[i, i] [inferred: the authors' code learns A by Adam, which converges to this]. All
computations are in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.errors import TutelageError


def inverse(gram: Tensor, ridge: float = 0.0) -> Tensor:
    """P = (G + ridge I)^-1, (d, d) float64, from the second moments G = Z'Z (d, d).

    Raises:
        TutelageError: the columns are linearly dependent, and the ridge is too small to separate them.
    """
    values, vectors = torch.linalg.eigh(gram.double() + ridge * torch.eye(len(gram), dtype=torch.float64))
    if not values[0] > len(gram) * torch.finfo(torch.float64).eps * values[-1]:
        raise TutelageError(
            f"the activations of these {len(gram)} units are linearly dependent, so that no regression of one on the "
            f"others is unique with a ridge of {ridge:g}; use a larger ridge"
        )
    result: Tensor = (vectors / values) @ vectors.T
    return result


def residuals(inverse: Tensor) -> Tensor:
    """The residuals ||Z[:, i] - Z A[:, i]|| = 1 / sqrt(P[i, i]) of each column's regression on the others, (d,)."""
    return inverse.diagonal().rsqrt()


def regression(inverse: Tensor, column: int) -> Tensor:
    """The coefficients A[:, j] (d,) of a column's regression on the others; 0 for itself and for removed columns."""
    coefficients = -inverse[:, column] / inverse[column, column]
    coefficients[column] = 0
    return coefficients


def without(inverse: Tensor, column: int) -> Tensor:
    """P after the removal of a column: P - P[:, j] P[j, :] / P[j, j], whose row and column j are exactly 0."""
    smaller = inverse - torch.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    smaller[column] = smaller[:, column] = 0
    return smaller


@dataclass(frozen=True)
class Elimination:
    """The units to remove, and how the others compensate for them.

    Attributes:
        removed: the columns, in the order of removal.
        transfer: M, (d, d) float64: weights W (o, d) on all columns become W M on the remaining ones. The columns of M
            of removed units are 0.
    """

    removed: tuple[int, ...]
    transfer: Tensor


def eliminate(gram: Tensor, count: int, *, ridge: float, units: int) -> Elimination:
    """Remove the unit that the others predict best, ``count`` times.

    Each removal updates the next layer's weights, W <- W + W[:, j] A[:, j]', and downdates P, so that the remaining
    units are then predicted without it.

    Args:
        gram: Z'Z, (d, d).
        count: the number of units to remove, less than ``units``.
        ridge: lambda.
        units: the number of leading columns that may be removed; a constant column after them may not.
    """
    remaining, transfer = inverse(gram, ridge), torch.eye(len(gram), dtype=torch.float64)
    removed: list[int] = []
    for _ in range(count):
        errors = residuals(remaining)[:units]
        errors[removed] = torch.inf
        column = int(errors.argmin())
        transfer += torch.outer(transfer[:, column], regression(remaining, column))
        transfer[:, column] = 0
        remaining = without(remaining, column)
        removed.append(column)
    return Elimination(tuple(removed), transfer)
