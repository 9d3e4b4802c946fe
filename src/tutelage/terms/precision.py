"""The precision and the range of numbers in which losses are computed."""

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
    """Make a function of tensors compute outside autocast, with half-precision tensors converted to float32."""

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        devices = {value.device.type for value in (*args, *kwargs.values()) if isinstance(value, Tensor)}
        args = tuple(_converted(value) for value in args)  # type: ignore[assignment]
        kwargs = {name: _converted(value) for name, value in kwargs.items()}  # type: ignore[assignment]
        for device in devices:
            if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
                with torch.autocast(device, enabled=False):
                    return wrapper(*args, **kwargs)
        return function(*args, **kwargs)

    return wrapper


def _converted(value: object) -> object:
    return at_least_float32(value) if isinstance(value, Tensor) else value


def scale_of(features: Tensor) -> Tensor:
    """The largest power of two not above the largest absolute value, (). Dividing by it rounds nothing.

    It is 1 if all values are 0 or subnormal. If one is NaN or infinite it is infinite, so that the quotient is NaN and
    the error stays visible.

    Args:
        features: any shape, float32 or float64; no gradient passes through the scale.
    """
    largest = features.detach().abs().amax()
    bits, exponent = (torch.int64, 0x7FF0000000000000) if features.dtype == torch.float64 else (torch.int32, 0x7F800000)
    power = (largest.view(bits) & exponent).view(features.dtype)  # the mantissa cleared
    return power.where(power != 0, 1.0)
