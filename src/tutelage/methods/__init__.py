"""Methods: one file or folder each.

A method is a function that takes a ``Run`` and returns the student it trained. Each module or package of this folder
whose name does not begin with an underscore defines a method of the same name. Installed packages add methods by the
entry point group ``tutelage.methods``, and a method in any file or module can be named: ``my.py:dkd``,
``my_package.dkd:dkd``.
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
from tutelage.config import OBJECT_PREFIX
from tutelage.data.loader import mix_seeds
from tutelage.errors import TutelageError, one_line, unknown
from tutelage.fields import validation_error
from tutelage.methods._description import parameter_text
from tutelage.models.external.user_code import import_attribute
from tutelage.models.random_state import seeded
from tutelage.models.tapped import Tapped
from tutelage.tasks import find_task
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
    text = ", ".join(f"{value!r} with {other}={name}" for name, value in defaults.items())
    return Field(default_factory=lambda values: defaults[values[other]], description=text, validate_default=True)


@dataclass(frozen=True)
class Method:
    """A method of training a student.

    Attributes:
        function: ``(run, *, parameters) -> student``.
        paper: its source.
        family: what is matched or changed: response, representation, relation, online, baseline, ...
        task: the task that the student is trained for; ``None`` for the task of the data's targets.
        evidence: how much of the original could be read: its authors' code; its paper; or only its abstract, with the
            rest from memory, from other people's code or inferred, as the docstring says. ``None`` if there is no
            original, or it is not stated.
    """

    function: Callable[..., Tapped]
    paper: str
    family: str
    task: str | None = "classification"
    evidence: Evidence | None = None

    @property
    def name(self) -> str:
        """The name of the function."""
        return self.function.__name__

    @property
    def spec(self) -> str:
        """The text by which ``find`` finds it; ``given:...`` for a method that cannot be imported.

        Such a method is defined in a notebook, in the program's main file or inside a function.
        """
        home, name = self.function.__module__, self.name
        if home == f"{__name__}.{name}" or home.startswith(f"{__name__}.{name}."):
            return name
        points = [point for point, entry in _entry_points().items() if entry.value.replace(" ", "") == f"{home}:{name}"]
        if points and points[0] not in _builtin():
            return points[0]
        importable = home != "__main__" and getattr(sys.modules.get(home), name, None) is self
        return f"{home}:{name}" if importable else f"{OBJECT_PREFIX}{home}.{self.function.__qualname__}"

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return (inspect.getdoc(self.function) or "").split("\n", 1)[0]

    @cached_property
    def settings(self) -> type[BaseModel]:
        """A model of its parameters with their types and defaults, read from its signature."""
        parameters = [p for p in inspect.signature(self.function).parameters.values() if p.kind is p.KEYWORD_ONLY]
        # Without the annotation of the run, whose type a file may import for type checkers only.
        annotated = types.SimpleNamespace(
            __annotations__={p.name: p.annotation for p in parameters if p.annotation != p.empty}
        )
        hints = typing.get_type_hints(annotated, self.function.__globals__, include_extras=True)
        fields: dict[str, Any] = {
            p.name: (hints.get(p.name, Any), ... if p.default is p.empty else p.default) for p in parameters
        }
        config = ConfigDict(extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)
        return create_model(self.name, __config__=config, **fields)

    @property
    def parameters(self) -> dict[str, str]:
        """The type, range and default of each parameter in words."""
        return {name: parameter_text(field) for name, field in self.settings.model_fields.items()}

    def check(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Validate settings: convert them to their types and add defaults.

        Raises:
            TutelageError: a setting does not exist or has a wrong value; the message names the parameters.
        """
        try:
            checked = self.settings(**settings)
        except ValidationError as error:
            known = {name: f" ({text})" for name, text in self.parameters.items()}
            raise validation_error(error, f"method {self.name}", known) from None
        values = {name: getattr(checked, name) for name in self.settings.model_fields}
        for name, value in values.items():
            if isinstance(value, float) and value != 0 and not 1 / _LARGEST <= abs(value) <= _LARGEST:
                raise TutelageError(
                    f"method {self.name}: {name}: must be 0 or between {1 / _LARGEST:g} and {_LARGEST:g}, the range of"
                    f" float32 (got {value!r})"
                )
        return values

    @default_settings()
    def __call__(self, run: Run, **settings: Any) -> Tapped:
        """Train a student and return it. Random numbers drawn outside of fits depend on the run's seed alone."""
        run.begin(run.task if self.task is None else find_task(self.task))
        with seeded(mix_seeds(run.seed, 3)):
            return self.function(run, **self.check(settings))


def method(
    *, paper: str, family: str, task: str | None = "classification", evidence: Evidence | None = None
) -> Callable[[Callable[..., Tapped]], Method]:
    """Decorate a function of a run as a method; the arguments are the attributes of ``Method``."""
    return lambda function: Method(function, paper, family, task, evidence)


def find(name: str, trust: Trust = True) -> Method:
    """Find a method by name, in this folder, in installed packages, or as ``file.py:attr`` or ``module:attr``.

    Args:
        name: the name.
        trust: whose code may be imported (``check_trusted``): all code if the caller wrote the name; if a file holds
            it, pass what the user trusts.

    Raises:
        TutelageError: there is none, its code is not trusted, or it cannot be imported.
    """
    if name.startswith(OBJECT_PREFIX):
        function = name.rpartition(".")[2]
        raise TutelageError(
            f"the method {name!r} was an object of a Python program, which must pass it again (method={function}); "
            f"or move it to a file and name it FILE.py:{function}"
        )
    if ":" in name:
        check_trusted(name, trust, "the configuration")
        return _checked(name, import_attribute(name, "method"))
    builtin, points = _builtin(), _entry_points()
    if name in builtin:
        return _checked(name, getattr(importlib.import_module(f"{__name__}.{name}"), name, None))
    if name not in points:
        raise unknown("method", name, [*builtin, *points])
    try:
        loaded = points[name].load()
    except Exception as error:  # an import of other people's code can raise anything
        raise TutelageError(f"method {name!r} of {points[name].value} cannot be loaded: {one_line(error)}") from error
    return _checked(name, loaded)


def installed() -> list[str]:
    """The names of all methods, sorted."""
    return sorted({*_builtin(), *_entry_points()})


def _builtin() -> list[str]:
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return [name for name in names if name.isidentifier() and not name.startswith("_")]


def _entry_points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


def _checked(name: str, value: object) -> Method:
    if not isinstance(value, Method):
        raise TutelageError(f"method {name!r} is a {type(value).__name__}; decorate its function with @method(...)")
    return value
