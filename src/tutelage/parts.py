"""Parts: files of this package that are found by their name, such as families of networks and operations on networks.

A part is a file ``NAME.py`` in a folder that has the name of its kind. The folder of a package, such as
``models/surgery/``, holds the parts that any method may use; ``methods/METHOD/surgery/`` holds those of one method. A
new part is one new file. Only files of this package are listed, so a name in a weights file cannot import other code.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

_PACKAGE = Path(__file__).resolve().parent


def part_names(kind: str) -> list[str]:
    """The names of all parts of a kind: first those for all methods, then those of single methods, each sorted."""
    return list(_modules(kind))


def import_part(kind: str, name: str) -> ModuleType:
    """The module of a part.

    Args:
        kind: the name of its folder.
        name: one of ``part_names``.
    """
    return importlib.import_module(_modules(kind)[name])


def _modules(kind: str) -> dict[str, str]:
    """The modules of all parts of a kind by name."""
    files = [*sorted(_PACKAGE.glob(f"*/{kind}/*.py")), *sorted(_PACKAGE.glob(f"methods/*/{kind}/*.py"))]
    return {
        file.stem: ".".join((__package__, *file.relative_to(_PACKAGE).with_suffix("").parts))
        for file in files
        if not file.stem.startswith("_")
    }
