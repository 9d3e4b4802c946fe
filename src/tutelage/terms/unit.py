"""Normalisation to unit length with a bounded gradient."""

from __future__ import annotations

import torch
from torch import Tensor


def unit(vectors: Tensor, smallest: float = 1e-6) -> Tensor:
    """Scale vectors (..., D) to length 1; those shorter than ``smallest`` become 0 and have no gradient.

    ``F.normalize`` divides short vectors by its eps, so that their gradient is multiplied by 1e12: one pair of equal
    samples is enough to ruin a step.
    """
    length: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    too_short = length < smallest  # false for NaN, which stays visible
    # Masked before the division, so that the unused branch has no infinite gradient either.
    return (vectors / length.masked_fill(too_short, 1.0)).masked_fill(too_short, 0.0)
