"""Texts as token numbers: which positions are text, and means and maxima over these positions."""

from __future__ import annotations

from torch import Tensor


def text_mask(tokens: Tensor, padding: int) -> Tensor:
    """Which positions of tokens (B, T) are text and no padding, (B, T) bool."""
    return tokens != padding


def zero_padding(features: Tensor, mask: Tensor) -> Tensor:
    """Features (B, T, D) with 0 at the positions that ``mask`` (B, T) does not select."""
    return features * mask[:, :, None].to(features.dtype)


def masked_mean(features: Tensor, mask: Tensor) -> Tensor:
    """The mean of features (B, T, D) over the positions that ``mask`` (B, T) selects, (B, D); 0 for none."""
    total = zero_padding(features, mask).sum(1)
    mean: Tensor = total / mask.sum(1, keepdim=True).clamp(min=1).to(features.dtype)
    return mean


def masked_max(features: Tensor, mask: Tensor) -> Tensor:
    """The maximum of features (B, T, D) over the positions that ``mask`` (B, T) selects, (B, D); 0 for none."""
    largest = features.masked_fill(~mask[:, :, None], float("-inf")).amax(1)
    return largest.masked_fill(~mask.any(1, keepdim=True), 0.0)
