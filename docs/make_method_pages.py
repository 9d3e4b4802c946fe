"""Write docs/methods/NAME.md for every method of tutelage, from its docstring and its parameters."""

from __future__ import annotations

import inspect
import re
import types
import typing
from dataclasses import astuple
from pathlib import Path
from typing import Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from tutelage.methods import Method, find, installed

FOLDER = Path(__file__).resolve().parent / "methods"

EVIDENCE = {
    "code": "written from its authors' code.",
    "paper": "written from its paper.",
    "abstract": "written from its abstract, from memory and from other people's code; neither the full text nor the "
    "authors' code could be read.",
    None: "",
}

SIGNS: dict[type, str] = {Gt: "> {:g}", Ge: "≥ {:g}", Lt: "< {:g}", Le: "≤ {:g}"}
ENDS: dict[type, str] = {Gt: "({:g}", Ge: "[{:g}", Lt: "{:g})", Le: "{:g}]"}
TITLES = {"Deviations": "Deviations from the paper", "Evidence": "Evidence", "Raises": "Errors", "Notes": "Notes"}


def type_text(annotation: Any, metadata: list[Any]) -> str:
    """A parameter's type in words: ``number > 0``, ``"code" or "paper"``, ``integer ≥ 1 or None``."""
    if typing.get_origin(annotation) is typing.Annotated:
        inner, *constraints = typing.get_args(annotation)
        return type_text(inner, [*metadata, *constraints])
    if typing.get_origin(annotation) is Literal:
        return " or ".join(f'"{value}"' for value in typing.get_args(annotation))
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " or ".join(type_text(part, metadata) for part in typing.get_args(annotation))
    if annotation is type(None):
        return "None"
    noun = {float: "number", int: "integer", bool: "true or false", str: "text"}[annotation]
    flat = [part for item in metadata for part in (item.metadata if isinstance(item, FieldInfo) else [item])]
    bounds = [part for part in flat if type(part) in SIGNS]
    if len(bounds) == 2:
        ends = sorted(bounds, key=lambda part: type(part) in (Lt, Le))
        return f"{noun} in {', '.join(ENDS[type(part)].format(*astuple(part)) for part in ends)}"
    return " ".join([noun, *(SIGNS[type(part)].format(*astuple(part)) for part in bounds)])


def parameters(method: Method, descriptions: dict[str, str]) -> list[str]:
    """A list item for each parameter: its name, type, default and description."""
    lines = []
    for name, field in method.settings.model_fields.items():
        default = method.parameters[name].partition(" = ")[2].replace("'", '"')
        if isinstance(field.default, float):
            default = f"{field.default:.4g}"
        kind = type_text(field.annotation, field.metadata)
        lines.append(f"- **`{name}`** ({kind}; default {default}): {descriptions[name]}")
    return lines


def sections(docstring: str) -> tuple[str, str, dict[str, str], dict[str, str]]:
    """A docstring's summary, text, argument descriptions and further sections, by title."""
    summary, _, body = docstring.partition("\n")
    text, _, rest = body.partition("\nArgs:\n")
    arguments, _, rest = f"{rest}\n\n".partition("\n\n")
    descriptions: dict[str, str] = {}
    for line in inspect.cleandoc(arguments).splitlines():
        if not line.startswith(" "):
            names, _, description = line.partition(": ")
            current = names.split(", ")
            descriptions |= dict.fromkeys(current, description)
        else:
            descriptions |= {name: f"{descriptions[name]} {line.strip()}" for name in current}
    titled = {}
    for block in filter(None, (part.strip("\n") for part in rest.split("\n\n"))):
        match = re.match(r"(Deviations|Evidence|Raises):\s*", block)
        titled[match[1] if match else "Notes"] = inspect.cleandoc(block[match.end() if match else 0 :])
    return summary, text.strip("\n"), descriptions, titled


def fenced(text: str) -> str:
    """The text with its indented equations as code blocks."""
    blocks = text.split("\n\n")
    return "\n\n".join(f"```text\n{inspect.cleandoc(b)}\n```" if b.startswith("    ") else b for b in blocks)


def page(method: Method) -> str:
    """The page of one method."""
    summary, text, descriptions, titled = sections(inspect.getdoc(method.function) or "")
    source = f"src/tutelage/methods/{method.name}"
    source += "" if (FOLDER.parent.parent / source).is_dir() else ".py"
    lines = [f"# {method.name}", "", summary, ""]
    lines += [f"- Source: {method.paper}", f"- Family: {method.family}"]
    lines += [f"- Task: {f'`{method.task}`' if method.task else 'any'}"]
    lines += [f"- Implementation: {EVIDENCE[method.evidence]}"] if method.evidence else []
    lines += [f"- Code: [`{source}`](../../{source})", ""]
    lines += [fenced(text), ""] if text else []
    lines += ["## Parameters", ""]
    lines += parameters(method, descriptions) or [f"`{method.name}` has no parameters."]
    lines += ["", f"Set a parameter with `--set NAME=VALUE`; `tutelage methods {method.name}` prints this page.", ""]
    for title, content in titled.items():
        sentence = content[0].upper() + content[1:]
        lines += [f"## {TITLES[title]}", "", re.sub(r"^TutelageError", "`TutelageError`", sentence), ""]
    return "\n".join(lines)


def pages() -> dict[str, str]:
    """File name to text, for the methods that live in this repository."""
    methods = [find(name) for name in installed()]
    return {f"{m.name}.md": page(m) for m in methods if m.function.__module__ == f"tutelage.methods.{m.name}"}


if __name__ == "__main__":
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
