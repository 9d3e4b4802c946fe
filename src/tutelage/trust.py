"""Which code may be imported: code that the user named in this command, not code that only a file names."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Collection
from importlib.machinery import PathFinder

from tutelage.errors import TutelageError
from tutelage.text import value_text

Trust = bool | Collection[str]
"""All code (``True``), none (``False``), or only the code of these specifications, which the user typed."""


def typed_specs(*texts: str | None) -> frozenset[str]:
    """The specifications that a user typed: networks and methods, alone or as ``SPECIFICATION@WEIGHTS``."""
    parts = [text.split("@") for text in texts if text is not None]
    return frozenset("@".join(part[:count]) for part in parts for count in range(1, len(part) + 1))


def check_trusted(spec: str, trust: Trust, named_in: str) -> None:
    """Check, without importing anything, that a specification which runs code is trusted.

    ``module:attr`` and ``file.py:attr`` run code. ``timm/hf-hub:NAME`` and timm's other addresses may do so too, since
    weights there may be pickles. Other names are networks and methods of this package or of its installed extensions.

    Args:
        spec: a network or a method.
        trust: code that may run.
        named_in: what names the specification, for the error.

    Raises:
        TutelageError: it is not trusted; the message says which code would be imported, and from where.
    """
    if ":" not in spec or trust is True or (trust is not False and spec in trust):
        return
    raise TutelageError(
        f"{named_in} names {value_text(spec)}, which would run code from {_origin(spec.rpartition(':')[0])}, and was"
        " not opened: if you trust that code, pass --trust (trust=True in Python) or type this name yourself"
    )


def _origin(path: str) -> str:
    """The file or location of an import path or file name; no parent package is imported."""
    if path.endswith(".py"):
        return os.path.abspath(os.path.expanduser(path))
    if path.startswith("timm/"):
        return "weights outside timm's own collection"
    names, search_path = path.split("."), [os.getcwd(), *sys.path]
    importlib.invalidate_caches()
    for number, name in enumerate(names):
        module = PathFinder.find_spec(name, search_path)
        if module is None:
            break
        if number == len(names) - 1:
            return module.origin or next(iter(module.submodule_search_locations or ()), path)
        search_path = list(module.submodule_search_locations or ())
    loaded = sys.modules.get(path)  # built-in modules are on no path
    return getattr(loaded, "__file__", None) or f"the module {value_text(path)}"
