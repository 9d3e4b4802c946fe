"""``module:attr`` and ``file.py:attr``: networks and methods from the user's own code."""

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
    """What the attribute is or makes."""
    found = import_attribute(spec, "model")
    if isinstance(found, nn.Module):
        return BuiltModel(
            copy_network(found, repr(spec), "name a class or function that makes the network"), from_instance=True
        )
    if not callable(found):
        raise TutelageError(
            f"{spec!r} is of type {type(found).__name__}:"
            " name a class or function that makes an nn.Module, or an nn.Module"
        )
    made = _call(spec, found, requirements.arguments())
    if not isinstance(made, nn.Module):
        raise TutelageError(f"{spec!r} returned an object of type {type(made).__name__}: return an nn.Module")
    return BuiltModel(made)


def import_attribute(spec: str, what: str) -> object:
    """The attribute that a text names: ``module:attr``, or ``file.py:attr``. This runs the user's code.

    Args:
        spec: an import path, found from the current folder too, or a file; and an attribute, with dots if it is nested.
        what: a model or a method, for the error.

    Raises:
        TutelageError: there is no such module, file or attribute, or its code fails.
    """
    path, _, attribute = spec.rpartition(":")
    if not path or not attribute:
        example = "my_package.nets:SmallNet" if what == "model" else "my_method.py:dkd"
        raise TutelageError(f"{what} {spec!r} is not of the form module:attr, such as {example}")
    return _attribute(spec, what, _import(spec, what, path), attribute)


def _import(spec: str, what: str, path: str) -> ModuleType:
    file = as_path(path).resolve() if path.endswith(".py") else None
    if file is not None and not file.is_file():
        raise TutelageError(
            f"no module {path!r} for the {what} {spec!r}: there is no such file; check the path, or give an import path"
            " with dots and without .py"
        )
    try:
        with _folder_first(os.getcwd() if file is None else str(file.parent)):
            return importlib.import_module(path) if file is None else _run_file(file)
    except (Exception, SystemExit) as error:  # whatever the user's file does while it is imported
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and (path == missing or path.startswith(f"{missing}.")):
            raise TutelageError(
                f"no module {missing!r} for the {what} {spec!r}: give an import path with dots and without"
                " .py, to a file under the current folder or to an installed package"
            ) from error
        raise TutelageError(
            f"importing {path!r} for the {what} {spec!r} failed: {type(error).__name__}: {one_line(error)};"
            " mend that file"
        ) from error


def _run_file(file: Path) -> ModuleType:
    """The module of a file: its name is its path, and it is run again only when the file has changed since."""
    name, source = str(file), file.read_bytes()
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__source__", None) == source:
        return known
    found = importlib.util.spec_from_file_location(name, file)
    if found is None or found.loader is None:
        raise ImportError(f"{file} is no Python file")
    module = importlib.util.module_from_spec(found)
    module.__dict__["__source__"] = source
    sys.modules[name] = module  # where the dataclasses of the file look for their module
    try:
        exec(compile(source, name, "exec"), module.__dict__)  # the loader could take bytecode of an older file
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def _folder_first(folder: str) -> Iterator[None]:
    """Let a folder be imported from, as the current one is under ``python -m``, and take it off the path again."""
    importlib.invalidate_caches()  # the file may be younger than the last look at its folder
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with suppress(ValueError):  # the imported file may have tidied the path itself
            sys.path.remove(folder)


def _attribute(spec: str, what: str, module: ModuleType, attribute: str) -> object:
    value: object = module
    for name in attribute.split("."):
        if not hasattr(value, name):
            public = [known for known in dir(value) if not known.startswith("_")]
            raise TutelageError(
                f"no attribute {name!r} for the {what} {spec!r}{suggestion(name, public)}: name "
                f"{'a class, function or nn.Module' if what == 'model' else 'a function decorated with @method(...)'}"
                f" of {module.__name__!r}"
            )
        value = getattr(value, name)
    return value


def _call(spec: str, factory: Callable[..., object], offers: Mapping[str, Any]) -> object:
    """Call a user's factory with what it takes of what there is to give."""
    given, open_ended = _accepted(spec, factory, offers)
    while True:
        try:
            return factory(**given)
        except TutelageError:
            raise  # it has said what is wrong already
        except Exception as error:
            # Some factories take any keyword and hand it on to a class that does not, as torchvision's do.
            refused = [name for name in given if f"unexpected keyword argument '{name}'" in str(error)]
            if open_ended and refused and isinstance(error, TypeError):
                given = {name: value for name, value in given.items() if name not in refused}
                continue
            arguments = ", ".join(f"{name}={value!r}" for name, value in given.items())
            raise TutelageError(
                f"{spec!r} failed when called with ({arguments}): {type(error).__name__}: {one_line(error)};"
                " mend it, or name a function that builds the model"
            ) from error


def _accepted(spec: str, factory: Callable[..., object], offers: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """The arguments that the signature takes, and whether it takes any keyword."""
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # some callables written in C have none
        return {}, False
    parameters = signature.parameters.values()
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
    given = {name: value for name, value in offers.items() if open_ended or name in named}
    try:
        signature.bind(**given)
    except TypeError as error:
        raise TutelageError(
            f"{spec!r} cannot be called: {one_line(error)}; give that argument a default, or name a function"
            f" of some of {', '.join(offers)}"
        ) from error
    return given, open_ended
