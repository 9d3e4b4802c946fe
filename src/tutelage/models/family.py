"""A family of networks whose names differ in their sizes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, slots=True)
class Family:
    """A family of networks, selected by the pattern of their names.

    Attributes:
        pattern: matches the whole name; its named groups are numbers, which are passed to the builder.
        builder: called with these, and with those of ``num_classes``, ``in_channels`` and ``image_shape`` it accepts.
        examples: valid names, for listings and for suggestions.
        description: one line for ``tutelage models``.
        paper: the source.
    """

    pattern: re.Pattern[str]
    builder: Callable[..., nn.Module]
    examples: tuple[str, ...]
    description: str
    paper: str
