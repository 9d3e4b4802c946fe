"""Tensors as plain JSON values."""

from __future__ import annotations

import math

from torch import Tensor


def json_number(value: Tensor | float) -> float | None:
    """The value as a float; ``None`` for NaN, which JSON cannot represent."""
    plain = float(value)
    return None if math.isnan(plain) else plain


def json_numbers(values: Tensor) -> list[float | None]:
    """``json_number`` of each value of a tensor (N,)."""
    return [json_number(value) for value in values.tolist()]
