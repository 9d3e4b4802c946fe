"""Roles that are computed from other roles, such as attention maps and flow matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class DerivedRole(str):
    """A role that is a function of other roles of the same network, for example ``flow_matrix(stem, stage1)``.

    It can be used wherever a role can. It is usually much smaller than the features it is computed from, so that it can
    be cached for a teacher (``TeacherCache``). The string contains the function's name, the roles and all parameters;
    equal strings mean equal values.

    Args:
        function: a named function of the bases' tensors (B, ...) and of the parameters. It returns (B, ...) and treats
            each sample separately.
        bases: the roles that it is computed from.
        parameters: keyword arguments; plain numbers and tuples, which ``repr`` describes completely.
    """

    bases: tuple[str, ...]

    def __new__(cls, function: Callable[..., Tensor], /, *bases: str, **parameters: Any) -> DerivedRole:
        """Create the role."""
        arguments = [*bases, *(f"{name}={value!r}" for name, value in parameters.items())]
        role = super().__new__(cls, f"{function.__name__}({', '.join(arguments)})")
        role.bases, role._function, role._parameters = bases, function, parameters
        return role

    _function: Callable[..., Tensor]
    _parameters: dict[str, Any]

    def compute(self, *tensors: Tensor) -> Tensor:
        """The value for the bases' tensors, in their own precision: autocast is disabled."""
        with torch.autocast(tensors[0].device.type, enabled=False):
            return self._function(*tensors, **self._parameters)

    def __getnewargs_ex__(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments from which ``copy`` and ``pickle`` create the role again."""
        return (self._function, *self.bases), self._parameters
