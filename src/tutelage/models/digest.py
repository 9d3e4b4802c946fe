"""What is needed of a network's layers, where that is less than the layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Digest(str):
    """A role that is a function of other roles of the same network, such as ``flow_matrix(stem, stage1)``.

    It can be asked for wherever a role can. A teacher's digest is small enough to be kept where its maps are not
    (``AnswerStore``). Its text names the function, the roles and every parameter: it says what is meant, and equal
    texts mean the same.

    Args:
        function: a named function of the bases' tensors (B, ...), and of parameters, to (B, ...). It looks at each
            sample by itself.
        bases: the roles that it is a function of.
        parameters: as keywords; plain numbers and tuples, whose ``repr`` says all.
    """

    bases: tuple[str, ...]

    def __new__(cls, function: Callable[..., Tensor], /, *bases: str, **parameters: Any) -> Digest:
        """The role of this text."""
        told = [*bases, *(f"{name}={value!r}" for name, value in parameters.items())]
        digest = super().__new__(cls, f"{function.__name__}({', '.join(told)})")
        digest.bases, digest._function, digest._parameters = bases, function, parameters
        return digest

    _function: Callable[..., Tensor]
    _parameters: dict[str, Any]

    def reduce(self, *tensors: Tensor) -> Tensor:
        """The digest of the bases' tensors, in their precision whatever autocast says."""
        with torch.autocast(tensors[0].device.type, enabled=False):
            return self._function(*tensors, **self._parameters)

    def __getnewargs_ex__(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What copies and pickles are made from."""
        return (self._function, *self.bases), self._parameters
