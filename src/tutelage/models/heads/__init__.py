"""Heads: modules that read layers of a network and return logits in place of the network's, one file per kind.

A kind is a part (``tutelage.parts``): a file with a function ``build(logits, maps, **settings)`` in a folder ``heads``.
It gets the network's logits (B, classes) and the outputs of the layers for an example, and returns an ``nn.Module``
that maps these to logits (B, classes). Settings are text, numbers and flat lists of these, since weights files store
them; ``build`` checks them and raises ``TutelageError``. The operation ``heads`` attaches the module.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from tutelage.errors import unknown
from tutelage.parts import import_part, part_names


def kinds() -> list[str]:
    """The names of all kinds."""
    return part_names("heads")


def build(kind: str, logits: Tensor, maps: Sequence[Tensor], **settings: Any) -> nn.Module:
    """A head of this kind.

    Args:
        kind: one of ``kinds``.
        logits: those of the network for an example, (B, classes).
        maps: the outputs of the layers for the example, (B, C, H, W) for images.
        settings: of the kind.

    Raises:
        TutelageError: there is no such kind, the settings are invalid, or the head cannot read these layers.
    """
    if kind not in kinds():
        raise unknown("head", kind, kinds())
    module: nn.Module = import_part("heads", kind).build(logits, maps, **settings)
    return module
