"""Hashes of the source files that outside methods and networks are made of: the package's own are not among them."""

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

_OWN = Path(__file__).resolve().parent.parent


def code_of_method(method: Method) -> dict[str, str]:
    """The source files of a method that is not the package's own: a hash each, by path."""
    return _code(method.function.__globals__)


def digest_of_method(method: Method) -> str | None:
    """Sixteen hexadecimal digits of the code of a method outside of this package; ``None`` for one of its own.

    The code is that of ``code_of_method``, and of a method in a notebook or the program's main file the function alone.
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
    """The same of networks, as ``code_of_network`` takes them; ``None`` where none of them has code of its own."""
    code: dict[str, str] = {}
    for spec in specs:
        code |= code_of_network(spec)
    return _digest(code) if code else None


def _digest(code: Mapping[str, str]) -> str:
    """One hash of several files; of a single file its own."""
    if len(code) == 1:
        return next(iter(code.values()))
    return hashlib.sha256(repr(sorted(code.items())).encode()).hexdigest()[:16]


def code_of_network(spec: str) -> dict[str, str]:
    """The same of a network: ``module:attr`` or ``file.py:attr``, also with weights, or the folder of a run.

    Networks of the zoo, of timm and of transformers have none. The module must have been imported, which building the
    network does.
    """
    folder, named = as_path(spec), split_model_spec(spec)
    if folder.is_dir():
        try:
            spec = read_header(folder / WEIGHTS).model or ""
        except TutelageError:  # opening the network reports what is wrong with it
            return {}
    elif named is not None:
        spec = named[0]
    home = spec.rpartition(":")[0]
    if home.endswith(".py"):
        return _code({"__file__": as_path(home)})
    module = sys.modules.get(home)
    return _code(vars(module)) if module else {}


def _code(namespace: Mapping[str, Any]) -> dict[str, str]:
    """The file of a module, and the files of its package or folder that it imports, directly or not."""
    start, package = Path(str(namespace.get("__file__"))).resolve(), str(namespace.get("__package__") or "")
    if not all(name.isidentifier() for name in package.split(".")):  # that of a file which was imported by its path
        package = ""
    if not start.is_file() or start.is_relative_to(_OWN):
        return {}
    base = start.parents[package.count(".") + 1 if package else 0]
    top = base / package.partition(".")[0] if package else base
    alone = not package and base.name in ("site-packages", "dist-packages")  # the others there are other packages
    hashes: dict[str, str] = {}
    waiting = [start]
    while waiting:
        file = waiting.pop()
        name = file.relative_to(base).as_posix()
        if name not in hashes and file.is_relative_to(top):
            source = file.read_bytes()
            hashes[name] = hashlib.sha256(source).hexdigest()[:16]
            waiting += [] if alone else _imported(source, file, base)
    return dict(sorted(hashes.items()))


def _imported(source: bytes, file: Path, base: Path) -> Iterator[Path]:
    """The files below a folder that a source file imports."""
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
            place = base.joinpath(*parts[:end])
            yield from (found for found in (place.with_suffix(".py"), place / "__init__.py") if found.is_file())
