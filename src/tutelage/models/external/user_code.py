"""``module:attr`` and ``file.py:attr``: networks and methods from users' code."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from tutelage.errors import TutelageError, one_line
from tutelage.files import as_path
from tutelage.models.external.common import BuiltModel, ModelSpec, suggestion
from tutelage.models.state import copy_network


def from_import(spec: str, requirements: ModelSpec) -> BuiltModel:
    """The network that the attribute is or returns.

    Raises:
        TutelageError: the attribute cannot be imported or called, or yields no ``nn.Module``.
    """
    attribute = import_attribute(spec, "model")
    if isinstance(attribute, nn.Module):
        return BuiltModel(
            copy_network(attribute, repr(spec), "name a class or function that returns the network"), from_instance=True
        )
    if not callable(attribute):
        raise TutelageError(
            f"{spec!r} is of type {type(attribute).__name__}:"
            " name a class or function that returns an nn.Module, or an nn.Module"
        )
    module = _call(spec, attribute, requirements.arguments())
    if not isinstance(module, nn.Module):
        raise TutelageError(f"{spec!r} returned an object of type {type(module).__name__}: return an nn.Module")
    return BuiltModel(module)


def import_attribute(spec: str, kind: str) -> object:
    """The attribute that ``module:attr`` or ``file.py:attr`` names. This runs the user's code.

    Args:
        spec: an import path (also relative to the current folder) or a Python file, and an attribute, which may be
            nested (``a.b``).
        kind: "model" or "method", for the error message.

    Raises:
        TutelageError: there is no such module, file or attribute, or its code fails.
    """
    path, _, attribute = spec.rpartition(":")
    if not path or not attribute:
        example = "my_package.nets:SmallNet" if kind == "model" else "my_method.py:dkd"
        raise TutelageError(f"{kind} {spec!r} is not of the form module:attr, such as {example}")
    return _attribute(spec, kind, _import(spec, kind, path), attribute)


def _import(spec: str, kind: str, path: str) -> ModuleType:
    file = as_path(path).resolve() if path.endswith(".py") else None
    if file is not None and not file.is_file():
        raise TutelageError(
            f"no module {path!r} for the {kind} {spec!r}: there is no such file; check the path, or give an import path"
            " with dots and without .py"
        )
    try:
        with _folder_first(os.getcwd() if file is None else str(file.parent)):
            return importlib.import_module(path) if file is None else _run_file(file)
    except (Exception, SystemExit) as error:  # the user's file may raise anything
        missing_module = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing_module is not None and (path == missing_module or path.startswith(f"{missing_module}.")):
            raise TutelageError(
                f"no module {missing_module!r} for the {kind} {spec!r}: give an import path with dots and without"
                " .py, to a file under the current folder or to an installed package"
            ) from error
        raise TutelageError(
            f"importing {path!r} for the {kind} {spec!r} failed: {type(error).__name__}: {one_line(error)};"
            " correct that file"
        ) from error


def _run_file(file: Path) -> ModuleType:
    """The module of a file, with the path as its name. The file runs again only if it has changed."""
    name, source = str(file), file.read_bytes()
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__source__", None) == source:
        return loaded
    module_spec = importlib.util.spec_from_file_location(name, file)
    if module_spec is None or module_spec.loader is None:
        raise ImportError(f"{file} is no Python file")
    module = importlib.util.module_from_spec(module_spec)
    module.__dict__["__source__"] = source
    sys.modules[name] = module  # dataclasses look their module up here
    try:
        exec(compile(source, name, "exec"), module.__dict__)  # the loader might use stale bytecode
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def _folder_first(folder: str) -> Iterator[None]:
    """Put a folder first on the import path, as ``python -m`` does with the current one, within the block."""
    importlib.invalidate_caches()  # the file may have been created after the folder was last listed
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with suppress(ValueError):  # the imported file may have removed it itself
            sys.path.remove(folder)


def _attribute(spec: str, kind: str, module: ModuleType, attribute: str) -> object:
    value: object = module
    for name in attribute.split("."):
        if not hasattr(value, name):
            public = [key for key in dir(value) if not key.startswith("_")]
            raise TutelageError(
                f"no attribute {name!r} for the {kind} {spec!r}{suggestion(name, public)}: name "
                f"{'a class, function or nn.Module' if kind == 'model' else 'a function decorated with @method(...)'}"
                f" of {module.__name__!r}"
            )
        value = getattr(value, name)
    return value


def _call(spec: str, factory: Callable[..., object], offers: Mapping[str, Any]) -> object:
    """Call a user's function with those of the offered arguments that it accepts."""
    arguments, takes_any = _accepted(spec, factory, offers)
    while True:
        try:
            return factory(**arguments)
        except TutelageError:
            raise
        except Exception as error:
            # Some functions, such as torchvision's, accept any keyword and pass it to a class that does not.
            refused = [name for name in arguments if f"unexpected keyword argument '{name}'" in str(error)]
            if takes_any and refused and isinstance(error, TypeError):
                arguments = {name: value for name, value in arguments.items() if name not in refused}
                continue
            text = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
            raise TutelageError(
                f"{spec!r} failed when called with ({text}): {type(error).__name__}: {one_line(error)};"
                " correct it, or name a function that builds the model"
            ) from error


def _accepted(spec: str, factory: Callable[..., object], offers: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """The offered arguments that the signature accepts, and whether it accepts any keyword (``**``)."""
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # some callables written in C have none
        return {}, False
    parameters = signature.parameters.values()
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    arguments = {name: value for name, value in offers.items() if takes_any or name in named}
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise TutelageError(
            f"{spec!r} cannot be called: {one_line(error)}; give that argument a default, or name a function"
            f" that takes only some of {', '.join(offers)}"
        ) from error
    return arguments, takes_any
