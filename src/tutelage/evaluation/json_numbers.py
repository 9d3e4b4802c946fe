"""Tensors as plain JSON values."""

from __future__ import annotations

import math

from torch import Tensor


def json_number(value: Tensor | float) -> float | None:
    """A plain number; ``None`` for NaN, which JSON does not have."""
    plain = float(value)
    return None if math.isnan(plain) else plain


def json_numbers(values: Tensor) -> list[float | None]:
    """The same for each of (N,)."""
    return [json_number(value) for value in values.tolist()]
