"""Write docs/methods/NAME.md for every method of tutelage, from its docstring and its parameters."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from tutelage.methods import Method, find, installed
from tutelage.methods._description import parse_docstring

FOLDER = Path(__file__).resolve().parent / "methods"

EVIDENCE = {
    "code": "written from its authors' code.",
    "paper": "written from its paper.",
    "abstract": "written from its abstract, from memory and from other people's code; neither the full text nor the "
    "authors' code could be read.",
    None: "",
}

TITLES = {"Deviations": "Deviations from the paper", "Evidence": "Evidence", "Raises": "Errors", "Notes": "Notes"}


def fenced(text: str) -> str:
    """The text with its indented equations as code blocks."""
    blocks = text.split("\n\n")
    return "\n\n".join(f"```text\n{inspect.cleandoc(b)}\n```" if b.startswith("    ") else b for b in blocks)


def page(method: Method) -> str:
    """The page of one method."""
    docstring = parse_docstring(inspect.getdoc(method.function) or "")
    source = f"src/tutelage/methods/{method.name}"
    source += "" if (FOLDER.parent.parent / source).is_dir() else ".py"
    lines = [f"# {method.name}", "", docstring.summary, ""]
    lines += [f"- Source: {method.paper}", f"- Family: {method.family}"]
    lines += [f"- Task: {f'`{method.task}`' if method.task else 'any'}"]
    lines += [f"- Implementation: {EVIDENCE[method.evidence]}"] if method.evidence else []
    lines += [f"- Code: [`{source}`](../../{source})", ""]
    lines += [fenced(docstring.text), ""] if docstring.text else []
    lines += ["## Parameters", ""]
    items = [f"- **`{name}`** ({text}): {docstring.arguments[name]}" for name, text in method.parameters.items()]
    lines += items or [f"`{method.name}` has no parameters."]
    lines += ["", f"Set a parameter with `--set NAME=VALUE`; `tutelage methods {method.name}` prints this page.", ""]
    for title, content in docstring.sections.items():
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
