"""The formats of data sets: how a name begins, what follows, and which module reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Argument = Literal["", "[:SEVERITY]", ":FILE", ":FOLDER", ":REPO"]
Option = Literal["image_size", "test", "skip_bad", "cache"]

ALL: frozenset[Option] = frozenset(("image_size", "test", "skip_bad", "cache"))


@dataclass(frozen=True, slots=True)
class Format:
    """A format of data sets.

    Attributes:
        argument: what follows the name of the format.
        module: in ``tutelage.data.formats``; its function ``load`` gets the argument, if there is one, and the options.
        options: the reading options that it supports.
    """

    argument: Argument
    module: str
    options: frozenset[Option] = frozenset()


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "digits": Format("", "digits"),
        "folder": Format(":FOLDER", "folder", ALL),
        "idx": Format(":FOLDER", "idx"),
        "npz": Format(":FILE", "npz"),
        "hf": Format(":REPO", "hf", ALL - {"test"}),
        "text": Format(":FOLDER", "text"),
        "wav": Format(":FOLDER", "wav"),
        "maps": Format(":FOLDER", "maps", ALL - {"skip_bad"}),
        "masks": Format(":FOLDER", "masks", ALL),
        "boxes": Format(":FOLDER", "boxes.load", ALL),
        "frames": Format(":FOLDER", "videos", frozenset(("image_size", "test"))),
        "barcodes": Format("[:SEVERITY]", "barcodes"),
    }
)


def names() -> str:
    """All formats with their arguments, as a list in a sentence."""
    *most, last = (f"{name}{form.argument}" for name, form in FORMATS.items())
    return f"{', '.join(most)} or {last}"


def supporting(option: Option) -> str:
    """The formats that support an option, as a list in a sentence."""
    *most, last = (f"{name}:" for name, form in FORMATS.items() if option in form.options)
    return f"{', '.join(most)} and {last}"
