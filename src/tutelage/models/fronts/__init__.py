"""Fronts: modules before a network's first layer that transform its inputs, one file per kind.

A kind is a module of this folder with a function ``build(example, **settings)``. It returns the ``nn.Module`` that
transforms the network's inputs (B, ...), after normalisation. Settings are text, numbers and flat lists of these, since
weights files store them; ``build`` checks them and raises ``TutelageError``. The operation ``front`` attaches the
module.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from torch import Tensor, nn

from tutelage.errors import unknown


def kinds() -> list[str]:
    """The names of all kinds."""
    return [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")]


def build(kind: str, example: Tensor, **settings: Any) -> nn.Module:
    """A front of this kind.

    Args:
        kind: the name of a module of this folder.
        example: inputs as the network takes them, (B, ...).
        settings: of the kind.

    Raises:
        TutelageError: there is no such kind, or the settings are invalid.
    """
    if kind not in kinds():
        raise unknown("front", kind, kinds())
    module: nn.Module = importlib.import_module(f"{__name__}.{kind}").build(example, **settings)
    return module
