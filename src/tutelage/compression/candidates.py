"""The ways to compress a network: methods with their settings for a target.

A method that compresses networks has a part of the kind ``compressors`` (``tutelage.parts``): the file
``methods/METHOD/compressors/METHOD.py`` with the function

    settings(resource, share) -> {label: settings of the method}

``resource`` is "flops", "parameters" or "bits", and ``share`` what may remain of it, in (0, 1). The result is empty if
the method cannot aim at this resource.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tutelage.errors import TutelageError, unknown
from tutelage.parts import import_part, part_names
from tutelage.text import value_text

KIND = "compressors"
RESOURCES = ("flops", "parameters", "bits")


@dataclass(frozen=True, slots=True)
class Target:
    """What limits a compressed network.

    Attributes:
        resource: "flops" of one input, "parameters", or "bits" of all weights.
        share: the largest share of that of the network.
    """

    resource: str
    share: float

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read a target such as ``flops=0.3``.

        Raises:
            TutelageError: another resource, or a share outside of (0, 1).
        """
        name, _, value = text.partition("=")
        try:
            share = float(value)
        except ValueError:
            share = math.nan
        if name.strip() not in RESOURCES or not 0 < share < 1:
            raise TutelageError(
                f"a target is {', '.join(f'{resource}=SHARE' for resource in RESOURCES)} with a share between 0 and 1, "
                f"such as flops=0.3, got {value_text(text)}"
            )
        return cls(name.strip(), share)

    def __str__(self) -> str:
        """As ``parse`` reads it."""
        return f"{self.resource}={self.share:g}"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to compress a network.

    Attributes:
        name: of its run folder.
        method: the method.
        settings: its settings.
    """

    name: str
    method: str
    settings: Mapping[str, Any]


def candidates(targets: Sequence[Target], methods: Sequence[str] = ()) -> list[Candidate]:
    """All ways to meet each of the targets.

    Args:
        targets: at least one.
        methods: the methods to use; all by default.

    Raises:
        TutelageError: a method does not exist or does not compress, or none can aim at these resources.
    """
    names = part_names(KIND)
    for method in methods:
        if method not in names:
            raise unknown("method that compresses", method, names)
    ways = [
        Candidate("-".join(filter(None, (method, label, f"{target.share:g}"))), method, settings)
        for target in targets
        for method in methods or names
        for label, settings in import_part(KIND, method).settings(target.resource, target.share).items()
    ]
    if not ways:
        chosen = ", ".join(methods or names)
        raise TutelageError(f"{chosen} cannot aim at {', '.join(map(str, targets))}; choose another target or method")
    return ways
