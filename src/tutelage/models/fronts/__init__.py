"""What can stand before a network's first layer: one file a kind.

A kind is a module of this folder with ``build(example, **settings)``: the ``nn.Module`` that changes the network's
inputs, here (B, ...) as the network takes them, so normalised ones. Its settings are text, numbers and flat lists of
them, since a weights file carries them; ``build`` checks them and raises ``TutelageError``. The operation ``front``
puts it in place.
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
        example: inputs as the network takes them.
        settings: of the kind.

    Raises:
        TutelageError: there is no such kind, or the settings do not fit.
    """
    if kind not in kinds():
        raise unknown("front", kind, kinds())
    module: nn.Module = importlib.import_module(f"{__name__}.{kind}").build(example, **settings)
    return module
