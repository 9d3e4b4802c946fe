"""Linear redundancy of a layer's units: which one is a linear combination of the others, and of which.

With the activations Z (n, d) of a layer's units as columns, possibly a constant column among them, let
P = (Z'Z + lambda I)^-1. The regression of column i on all others has the coefficients A[k, i] = -P[k, i] / P[i, i] and
the squared residual 1 / P[i, i] [inferred: the authors' code learns A by Adam; this is where that ends]. All of it is
float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.errors import TutelageError


def inverse(gram: Tensor, ridge: float = 0.0) -> Tensor:
    """P = (G + ridge I)^-1, (d, d) float64, of the second moments G = Z'Z (d, d).

    Raises:
        TutelageError: the columns depend on each other exactly and the ridge does not part them.
    """
    values, vectors = torch.linalg.eigh(gram.double() + ridge * torch.eye(len(gram), dtype=torch.float64))
    if not values[0] > len(gram) * torch.finfo(torch.float64).eps * values[-1]:
        raise TutelageError(
            f"the activations of these {len(gram)} units are linearly dependent to the last bit and no regression of "
            f"one on the others is unique with a ridge of {ridge:g}; take a larger one"
        )
    found: Tensor = (vectors / values) @ vectors.T
    return found


def residuals(inverse: Tensor) -> Tensor:
    """||Z[:, i] - Z A[:, i]|| of each column's regression on the others, (d,): 1 / sqrt(P[i, i])."""
    return inverse.diagonal().rsqrt()


def regression(inverse: Tensor, column: int) -> Tensor:
    """A[:, j] (d,): how the others predict this column; its own entry, and those of columns that are gone, are 0."""
    coefficients = -inverse[:, column] / inverse[column, column]
    coefficients[column] = 0
    return coefficients


def without(inverse: Tensor, column: int) -> Tensor:
    """P after a column is gone: P - P[:, j] P[j, :] / P[j, j], whose row and column j are exactly 0."""
    smaller = inverse - torch.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    smaller[column] = smaller[:, column] = 0
    return smaller


@dataclass(frozen=True)
class Elimination:
    """Units that are to go, and who takes over what they did.

    Attributes:
        removed: the columns, in the order in which they went.
        transfer: (d, d) float64, M: weights W (o, d) on all columns become W M on those that stay, and the columns of
            M that belong to removed units are 0.
    """

    removed: tuple[int, ...]
    transfer: Tensor


def eliminate(gram: Tensor, count: int, *, ridge: float, units: int) -> Elimination:
    """Take away the unit that the others predict best, ``count`` times.

    Each time the next layer's weights take over what it did, W <- W + W[:, j] A[:, j]', and P is downdated: the others
    are from then on predicted without it.

    Args:
        gram: Z'Z, (d, d).
        count: how many, below ``units``.
        ridge: lambda.
        units: the first so many columns may go; what follows, a constant, stays.
    """
    left, transfer = inverse(gram, ridge), torch.eye(len(gram), dtype=torch.float64)
    removed: list[int] = []
    for _ in range(count):
        predicted = residuals(left)[:units]
        predicted[removed] = torch.inf
        column = int(predicted.argmin())
        transfer += torch.outer(transfer[:, column], regression(left, column))
        transfer[:, column] = 0
        left = without(left, column)
        removed.append(column)
    return Elimination(tuple(removed), transfer)
