"""Fronts: modules before a network's first layer that transform its inputs, one file per kind.

A kind is a part (``tutelage.parts``): a file with a function ``build(example, **settings)`` in a folder ``fronts``.
It returns the ``nn.Module`` that transforms the network's inputs (B, ...), after normalisation. Settings are text,
numbers and flat lists of these, since weights files store them; ``build`` checks them and raises ``TutelageError``. The
operation ``front`` attaches the module.

A module that is not differentiable declares surrogate gradients for attacks: an attribute ``surrogates``, a mapping
from names to differentiable functions of its input with outputs of the same shape, the default first. One that draws
random numbers in eval mode has an attribute ``is_random`` that is true.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tutelage.errors import unknown
from tutelage.parts import import_part, part_names


def kinds() -> list[str]:
    """The names of all kinds."""
    return part_names("fronts")


def build(kind: str, example: Tensor, **settings: Any) -> nn.Module:
    """A front of this kind.

    Args:
        kind: one of ``kinds``.
        example: inputs as the network takes them, (B, ...).
        settings: of the kind.

    Raises:
        TutelageError: there is no such kind, or the settings are invalid.
    """
    if kind not in kinds():
        raise unknown("front", kind, kinds())
    module: nn.Module = import_part("fronts", kind).build(example, **settings)
    return module
