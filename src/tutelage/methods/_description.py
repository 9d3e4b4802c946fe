"""Methods in words: the parameters and the docstring of a method, for the command line and the documentation."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from typing import Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

_SIGNS: dict[type, str] = {Gt: "> {:g}", Ge: "≥ {:g}", Lt: "< {:g}", Le: "≤ {:g}"}
_ENDS: dict[type, str] = {Gt: "({:g}", Ge: "[{:g}", Lt: "{:g})", Le: "{:g}]"}
_NOUNS: dict[object, str] = {
    float: "number",
    int: "integer",
    bool: "true or false",
    str: "text",
    tuple[float, ...]: "list of numbers",
    tuple[str, ...]: "list of texts",
    types.NoneType: "None",
}


def parameter_text(parameter: FieldInfo) -> str:
    """A parameter's type, range and default: ``number > 0; default 4``, ``"code" or "paper"; default "code"``."""
    kind = type_text(parameter.annotation, parameter.metadata)
    if parameter.is_required():
        return f"{kind}; required"
    if parameter.default_factory is not None:  # the default depends on another parameter
        default = str(parameter.description)
    elif isinstance(parameter.default, float):
        default = f"{parameter.default:.4g}"
    else:
        default = repr(parameter.default)
    return f"{kind}; default {default}".replace("'", '"')


def type_text(annotation: Any, constraints: Sequence[Any] = ()) -> str:
    """A type in words: ``number > 0``, ``"code" or "paper"``, ``integer ≥ 1 or None``."""
    if typing.get_origin(annotation) is typing.Annotated:
        inner, *more = typing.get_args(annotation)
        return type_text(inner, [*constraints, *more])
    if typing.get_origin(annotation) is Literal:
        return " or ".join(f'"{value}"' for value in typing.get_args(annotation))
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " or ".join(type_text(part, constraints) for part in typing.get_args(annotation))
    noun = _NOUNS.get(annotation, inspect.formatannotation(annotation))
    if annotation is types.NoneType:
        return noun
    flat = [part for item in constraints for part in (item.metadata if isinstance(item, FieldInfo) else [item])]
    bounds = [part for part in flat if type(part) in _SIGNS]
    if len(bounds) == 2:
        ends = sorted(bounds, key=lambda part: type(part) in (Lt, Le))
        return f"{noun} in {', '.join(_ENDS[type(part)].format(*astuple(part)) for part in ends)}"
    return " ".join([noun, *(_SIGNS[type(part)].format(*astuple(part)) for part in bounds)])


@dataclass(frozen=True)
class Docstring:
    """The parts of a method's docstring.

    Attributes:
        summary: the first line.
        text: the text between it and the arguments.
        arguments: the description of each argument.
        sections: the further sections by title; those without a title are ``Notes``.
    """

    summary: str
    text: str
    arguments: dict[str, str] = field(default_factory=dict)
    sections: dict[str, str] = field(default_factory=dict)


def parse_docstring(docstring: str) -> Docstring:
    """Split a docstring, as ``inspect.getdoc`` returns it, into its parts."""
    summary, _, body = docstring.partition("\n")
    text, _, rest = body.partition("\nArgs:\n")
    arguments, _, rest = f"{rest}\n\n".partition("\n\n")
    descriptions: dict[str, str] = {}
    names: list[str] = []
    for line in inspect.cleandoc(arguments).splitlines():
        if not line.startswith(" "):
            head, _, description = line.partition(": ")
            names = head.split(", ")
            descriptions |= dict.fromkeys(names, description)
        else:
            descriptions |= {name: f"{descriptions[name]} {line.strip()}" for name in names}
    sections = {}
    for block in filter(None, (part.strip("\n") for part in rest.split("\n\n"))):
        match = re.match(r"(Deviations|Evidence|Raises):\s*", block)
        sections[match[1] if match else "Notes"] = inspect.cleandoc(block[match.end() if match else 0 :])
    return Docstring(summary, text.strip("\n"), descriptions, sections)
