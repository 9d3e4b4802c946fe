"""The precision and the range that losses are computed in."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from tutelage.models.outputs import at_least_float32

P = ParamSpec("P")
R = TypeVar("R")


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """A function of tensors, computed outside of autocast, and in float32 where tensors are in half precision."""

    @wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        kinds = {value.device.type for value in (*args, *kwargs.values()) if isinstance(value, Tensor)}
        args = tuple(_full(value) for value in args)  # type: ignore[assignment]
        kwargs = {name: _full(value) for name, value in kwargs.items()}  # type: ignore[assignment]
        for kind in kinds:
            if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
                with torch.autocast(kind, enabled=False):
                    return guarded(*args, **kwargs)
        return function(*args, **kwargs)

    return guarded


def _full(value: object) -> object:
    return at_least_float32(value) if isinstance(value, Tensor) else value


def scale_of(features: Tensor) -> Tensor:
    """The power of two at or below the largest absolute value, (), to divide by: that rounds nothing.

    1 where all values are 0 or below the smallest normal number. Of NaN and infinity it is infinity: the quotient is
    NaN, which stays to be seen.

    Args:
        features: any shape, float32 or float64; no gradient passes through the scale.
    """
    largest = features.detach().abs().amax()
    kind, exponent = (torch.int64, 0x7FF0000000000000) if features.dtype == torch.float64 else (torch.int32, 0x7F800000)
    power = (largest.view(kind) & exponent).view(features.dtype)  # without the mantissa
    return power.where(power != 0, 1.0)
