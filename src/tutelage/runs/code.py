"""Hashes of the source files of methods and networks that are not part of this package."""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tutelage.errors import TutelageError
from tutelage.files import as_path
from tutelage.methods import Method
from tutelage.runs.folder import WEIGHTS
from tutelage.runs.header import read_header
from tutelage.runs.locate import split_model_spec

_PACKAGE = Path(__file__).resolve().parent.parent


def code_of_method(method: Method) -> dict[str, str]:
    """Hashes of the source files of a method by path; empty for the package's own methods."""
    return _code(method.function.__globals__)


def digest_of_method(method: Method) -> str | None:
    """A hash (16 hexadecimal digits) of a method's code; ``None`` for the package's own methods.

    The code is that of ``code_of_method``; for a method in a notebook or in the main program, the function only.
    """
    home = method.function.__module__
    if home.startswith("tutelage.methods."):
        return None
    if home != "__main__" and (code := code_of_method(method)):
        return _digest(code)
    try:
        source = inspect.getsource(method.function).encode()
    except (OSError, TypeError):  # typed into an interpreter
        source = method.function.__code__.co_code
    return hashlib.sha256(source).hexdigest()[:16]


def digest_of_networks(specs: Iterable[str]) -> str | None:
    """A hash of the code of networks, named as for ``code_of_network``; ``None`` if they have no such code."""
    code: dict[str, str] = {}
    for spec in specs:
        code |= code_of_network(spec)
    return _digest(code) if code else None


def _digest(code: Mapping[str, str]) -> str:
    """One hash for several files; for a single file, its hash."""
    if len(code) == 1:
        return next(iter(code.values()))
    return hashlib.sha256(repr(sorted(code.items())).encode()).hexdigest()[:16]


def code_of_network(spec: str) -> dict[str, str]:
    """Hashes of the source files of a network by path.

    Args:
        spec: ``module:attr`` or ``file.py:attr``, also with ``@WEIGHTS``, or the folder of a run. Other networks have
            no such files. The module must have been imported before, which building the network does.
    """
    folder, parts = as_path(spec), split_model_spec(spec)
    if folder.is_dir():
        try:
            spec = read_header(folder / WEIGHTS).model or ""
        except TutelageError:  # opening the network raises the error
            return {}
    elif parts is not None:
        spec = parts[0]
    home = spec.rpartition(":")[0]
    if home.endswith(".py"):
        return _code({"__file__": as_path(home)})
    module = sys.modules.get(home)
    return _code(vars(module)) if module else {}


def _code(namespace: Mapping[str, Any]) -> dict[str, str]:
    """Hashes of a module's file and of all files of its package or folder that it imports, also indirectly."""
    start, package = Path(str(namespace.get("__file__"))).resolve(), str(namespace.get("__package__") or "")
    if not all(name.isidentifier() for name in package.split(".")):  # a file that was imported by its path
        package = ""
    if not start.is_file() or start.is_relative_to(_PACKAGE):
        return {}
    base = start.parents[package.count(".") + 1 if package else 0]
    top = base / package.partition(".")[0] if package else base
    alone = not package and base.name in ("site-packages", "dist-packages")  # its neighbours are other packages
    hashes: dict[str, str] = {}
    queue = [start]
    while queue:
        file = queue.pop()
        name = file.relative_to(base).as_posix()
        if name not in hashes and file.is_relative_to(top):
            source = file.read_bytes()
            hashes[name] = hashlib.sha256(source).hexdigest()[:16]
            queue += [] if alone else _imported(source, file, base)
    return dict(sorted(hashes.items()))


def _imported(source: bytes, file: Path, base: Path) -> Iterator[Path]:
    """The files in ``base`` that a source file imports."""
    names: list[tuple[str, ...]] = []
    with suppress(SyntaxError, ValueError):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                names += [tuple(alias.name.split(".")) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                above = file.parents[node.level - 1].relative_to(base).parts if node.level else ()
                module = (*above, *(node.module.split(".") if node.module else ()))
                names += [module, *((*module, alias.name) for alias in node.names)]
    for parts in names:
        for end in range(1, len(parts) + 1):
            path = base.joinpath(*parts[:end])
            yield from (file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file())
