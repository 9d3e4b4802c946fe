"""Covariance pooling: the square root of the covariance of a map's channels (iSQRT-COV, Li et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tutelage.models.outputs import at_least_float32

_SMALLEST_TRACE = 1e-30  # a covariance below it counts as 0; its square root is a normal float32 number


def covariance(maps: Tensor) -> Tensor:
    """The biased covariance of the channels over the positions, S = 1/M sum_m (x_m - mean) (x_m - mean)^T.

    The maps are centred before they are multiplied, so that a large mean costs no precision.

    Args:
        maps: (B, D, H, W) or (B, D, M), floating point; M is the number of positions.

    Returns:
        (B, D, D), symmetric, of rank M - 1 at most.
    """
    vectors = maps.flatten(2)
    centred = vectors - vectors.mean(2, keepdim=True)
    return centred @ centred.mT / vectors.shape[2]


def matrix_sqrt(matrices: Tensor, iterations: int) -> Tensor:
    """An approximation of the square roots of positive semidefinite matrices by Newton-Schulz iterations.

        A = S / tr S,   Y_0 = A,   Z_0 = I,   P = (3 I - Z Y) / 2,   Y <- Y P,   Z <- P Z;   sqrt(tr S) Y_T

    This order of the products is stable. Division by the trace moves all eigenvalues into [0, 1], where the iteration
    converges, quadratically once they are near 1. An eigenvalue of 0 remains 0, and Y remains finite, so that singular
    matrices are allowed: their roots and gradients are finite, where those of an eigendecomposition are infinite.

    Args:
        matrices: S, (B, D, D), symmetric, float32 or float64.
        iterations: T. The relative error decreases with it, most slowly along small eigenvalues.

    Returns:
        (B, D, D), in the unit of the square root of S; 0 for S = 0.
    """
    trace = matrices.diagonal(dim1=1, dim2=2).sum(1)[:, None, None].clamp(min=_SMALLEST_TRACE)
    identity = torch.eye(matrices.shape[1], dtype=matrices.dtype, device=matrices.device).expand_as(matrices)
    root, inverse = matrices / trace, identity
    for _ in range(iterations):
        factor = 1.5 * identity - 0.5 * (inverse @ root)
        root, inverse = root @ factor, factor @ inverse
    return trace.sqrt() * root


class CovariancePooling(nn.Module):
    """The upper triangle of ``matrix_sqrt(covariance(maps))``, at least in float32, also under autocast.

    Args:
        channels: D.
        iterations: T.
    """

    index: Tensor

    def __init__(self, channels: int, iterations: int) -> None:
        super().__init__()
        self.iterations = iterations
        rows, columns = torch.triu_indices(channels, channels)
        self.register_buffer("index", rows * channels + columns, persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, D, H, W) to (B, D (D + 1) / 2): the diagonal and what is above it, row by row, without weights."""
        with torch.autocast(maps.device.type, enabled=False):
            root = matrix_sqrt(covariance(at_least_float32(maps)), self.iterations)
            return root.flatten(1)[:, self.index]
