"""Directions, with a gradient that stays bounded where there is none."""

from __future__ import annotations

import torch
from torch import Tensor


def unit(vectors: Tensor, smallest: float = 1e-6) -> Tensor:
    """Vectors (..., D) at length 1; those shorter than ``smallest`` become 0 and get no gradient.

    ``F.normalize`` divides these by its eps instead, which is a slope of 1e12: one pair of equal samples is enough to
    ruin a step.
    """
    length: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    too_short = length < smallest  # of a NaN this is false: it stays to be seen
    # Masked before the division, so that the unused branch has no infinite slope either.
    return (vectors / length.masked_fill(too_short, 1.0)).masked_fill(too_short, 0.0)
