"""Methods: one file each, named as the field names it.

A method is a function that is given a ``Run`` and returns the student it trained. Every module or package of this
folder holds one, under its own name, unless the name begins with an underscore; packages outside add theirs by the
entry point group ``tutelage.methods``, and any file or module can be named: ``my.py:dkd``, ``my_package.dkd:dkd``.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from tutelage.ambient import default_settings
from tutelage.config import OBJECT_PREFIX, validation_error
from tutelage.data.loader import mix
from tutelage.errors import TutelageError, one_line, unknown
from tutelage.models.external.user_code import import_attribute
from tutelage.models.tapped import Tapped
from tutelage.tasks import find as find_task
from tutelage.training.checkpoint import seeded
from tutelage.training.run import Run
from tutelage.trust import Trust, check_trusted

ENTRY_POINTS = "tutelage.methods"

_LARGEST = 1e30

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]

Evidence = Literal["code", "paper", "abstract"]


def default_by(other: str, **defaults: Any) -> Any:
    """A default that depends on the value of another parameter: ``default_by("form", code=250, paper=0.1)``.

    The other parameter comes first in the signature. Recorded settings hold the resolved value.
    """
    shown = ", ".join(f"{value!r} with {other}={name}" for name, value in defaults.items())
    return Field(default_factory=lambda checked: defaults[checked[other]], description=shown, validate_default=True)


@dataclass(frozen=True)
class Method:
    """A way to train a student.

    Attributes:
        function: ``(run, *, its parameters) -> student``.
        paper: where it comes from.
        family: what is imitated: response, representation, relation, online, baseline, ...
        task: what the student is trained for; ``None`` for whatever the data's targets are for.
        evidence: how much of the original could be read: its authors' code; its paper; or no more than its abstract,
            the rest being from memory, from other people's code or inferred, as the docstring says. ``None`` where
            there is no original, or nobody has said.
    """

    function: Callable[..., Tapped]
    paper: str
    family: str
    task: str | None = "classification"
    evidence: Evidence | None = None

    @property
    def name(self) -> str:
        """Its name, the function's."""
        return self.function.__name__

    @property
    def spec(self) -> str:
        """The text that ``find`` finds it by; ``given:...`` for a method that cannot be imported from anywhere.

        That is one of a notebook, of the program's main file or of another function.
        """
        home, name = self.function.__module__, self.name
        if home == f"{__name__}.{name}" or home.startswith(f"{__name__}.{name}."):
            return name
        points = [point for point, entry in _others().items() if entry.value.replace(" ", "") == f"{home}:{name}"]
        if points and points[0] not in _own():
            return points[0]
        importable = home != "__main__" and getattr(sys.modules.get(home), name, None) is self
        return f"{home}:{name}" if importable else f"{OBJECT_PREFIX}{home}.{self.function.__qualname__}"

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return (inspect.getdoc(self.function) or "").split("\n", 1)[0]

    @cached_property
    def settings(self) -> type[BaseModel]:
        """Its own parameters with their types and defaults, read from its signature."""
        parameters = [p for p in inspect.signature(self.function).parameters.values() if p.kind is p.KEYWORD_ONLY]
        # Only theirs: a file may import what it annotates the run with for type checkers alone.
        own = types.SimpleNamespace(
            __annotations__={p.name: p.annotation for p in parameters if p.annotation != p.empty}
        )
        hints = typing.get_type_hints(own, self.function.__globals__, include_extras=True)
        fields: dict[str, Any] = {
            p.name: (hints.get(p.name, Any), ... if p.default is p.empty else p.default) for p in parameters
        }
        config = ConfigDict(extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)
        return create_model(self.name, __config__=config, **fields)

    @property
    def parameters(self) -> dict[str, str]:
        """Each parameter's type and default, as text."""
        signature = inspect.signature(self.function).parameters
        return {
            name: f": {_type_name(signature[name].annotation)} = "
            + (repr(field.default) if field.default_factory is None else str(field.description))
            for name, field in self.settings.model_fields.items()
        }

    def check(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """These settings, converted to their types, with the defaults of the others.

        Raises:
            TutelageError: for one that does not exist or does not fit; the right ones are named.
        """
        try:
            checked = self.settings(**settings)
        except ValidationError as error:
            raise validation_error(error, f"method {self.name}", self.parameters) from None
        values = {name: getattr(checked, name) for name in self.settings.model_fields}
        for name, value in values.items():
            if isinstance(value, float) and value != 0 and not 1 / _LARGEST <= abs(value) <= _LARGEST:
                raise TutelageError(
                    f"method {self.name}: {name}: float32 computes with 0 and numbers from {1 / _LARGEST:g} to"
                    f" {_LARGEST:g} (got {value!r})"
                )
        return values

    @default_settings()
    def __call__(self, run: Run, **settings: Any) -> Tapped:
        """Train a student and return it. What the method draws between its fits depends on the run's seed alone."""
        run.begin(run.task if self.task is None else find_task(self.task))
        with seeded(mix(run.seed, 3)):
            return self.function(run, **self.check(settings))


def method(
    *, paper: str, family: str, task: str | None = "classification", evidence: Evidence | None = None
) -> Callable[[Callable[..., Tapped]], Method]:
    """Make a function of a run a method; the arguments are the attributes of ``Method``."""
    return lambda function: Method(function, paper, family, task, evidence)


def find(name: str, trust: Trust = True) -> Method:
    """The method of this name, from this folder, from an installed package, or from ``file.py:attr``, ``module:attr``.

    Args:
        name: which.
        trust: whose code may be imported (``check_trusted``). All, since the caller wrote ``name``; where a file says
            it, hand over what the user trusts.

    Raises:
        TutelageError: when there is none, its code is not trusted, or it cannot be imported.
    """
    if name.startswith(OBJECT_PREFIX):
        function = name.rpartition(".")[2]
        raise TutelageError(
            f"the method {name!r} was an object of a Python program and can only be given again (method={function}); "
            f"put it in a file, and name it FILE.py:{function}"
        )
    if ":" in name:
        check_trusted(name, trust, "the configuration")
        return _checked(name, import_attribute(name, "method"))
    own, others = _own(), _others()
    if name in own:
        return _checked(name, getattr(importlib.import_module(f"{__name__}.{name}"), name, None))
    if name not in others:
        raise unknown("method", name, [*own, *others])
    try:
        found = others[name].load()
    except Exception as error:  # whatever somebody else's file does while it is imported
        raise TutelageError(f"method {name!r} of {others[name].value} cannot be loaded: {one_line(error)}") from error
    return _checked(name, found)


def installed() -> list[str]:
    """The names of all methods, sorted."""
    return sorted({*_own(), *_others()})


def _own() -> list[str]:
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return [name for name in names if name.isidentifier() and not name.startswith("_")]


def _others() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


def _checked(name: str, found: object) -> Method:
    if not isinstance(found, Method):
        raise TutelageError(f"method {name!r} is a {type(found).__name__}; decorate its function with @method(...)")
    return found


def _type_name(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
