"""Norms of perturbations: distances, projections onto balls within the pixel range, and steepest steps."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Norm = Literal["linf", "l2", "l1"]
NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")

_ORDER = {"linf": float("inf"), "l2": 2.0, "l1": 1.0}
_TINY = 1e-12
_SHARE = 0.01  # of the values that a step in the L1 norm changes [our choice], at least one


def distance(inputs: Tensor, others: Tensor, norm: Norm) -> Tensor:
    """||others - inputs|| per sample: (B, ...) to (B,)."""
    length: Tensor = torch.linalg.vector_norm((others - inputs).flatten(1), _ORDER[norm], dim=1)
    return length


def project(inputs: Tensor, centres: Tensor, norm: Norm, radius: float) -> Tensor:
    """Project inputs (B, ...) onto the ball around the centres, then clip them to [0, 1].

    Clipping moves every value towards its centre, so the result stays in the ball. For L2 and L1 it is not always the
    nearest point of the intersection.
    """
    if norm == "linf":
        return inputs.clamp((centres - radius).clamp(min=0), (centres + radius).clamp(max=1))
    offset = (inputs - centres).flatten(1)
    if norm == "l2":
        length = offset.norm(dim=1, keepdim=True).clamp(min=_TINY)
        offset = offset * (radius / length).clamp(max=1)
    else:
        offset = _onto_l1(offset, radius)
    return (centres + offset.view_as(inputs)).clamp(0, 1)


def _onto_l1(offset: Tensor, radius: float) -> Tensor:
    """The nearest point of the L1 ball (Duchi et al. 2008): soft thresholding by the threshold that reaches it."""
    size = offset.abs()
    ordered = size.sort(dim=1, descending=True).values
    count = torch.arange(1, size.shape[1] + 1, device=size.device)
    thresholds = (ordered.cumsum(1) - radius) / count
    last = (ordered > thresholds).sum(1, keepdim=True).clamp(min=1)
    threshold = thresholds.gather(1, last - 1).clamp(min=0)
    return offset.sign() * (size - threshold).clamp(min=0)


def steepest(gradient: Tensor, inputs: Tensor, norm: Norm) -> Tensor:
    """The step of norm 1 along which the loss grows fastest: (B, ...) to (B, ...).

    L2: g / ||g||. Linf: sign g. L1: equal shares of the hundredth of the values (at least one) with the largest
    gradients among those that the pixel range lets move (Tramer, Boneh 2019, arXiv 1904.13000).
    """
    if norm == "linf":
        return gradient.sign()
    if norm == "l2":
        length = distance(torch.zeros_like(gradient), gradient, norm).clamp(min=_TINY)
        return gradient / length.view(-1, *[1] * (gradient.ndim - 1))
    movable = torch.where(gradient > 0, inputs < 1, inputs > 0)
    size = torch.where(movable, gradient.abs(), 0.0).flatten(1)
    count = max(1, round(_SHARE * size.shape[1]))
    chosen = torch.zeros_like(size).scatter(1, size.topk(count, dim=1).indices, 1.0 / count)
    return chosen.view_as(gradient) * gradient.sign()
