"""Write docs/methods/NAME.md for every method of tutelage, from its docstring and its parameters."""

from __future__ import annotations

import inspect
from pathlib import Path

from tutelage.methods import Method, find, installed

FOLDER = Path(__file__).resolve().parent / "methods"

EVIDENCE = {
    "code": "Written from its authors' code.",
    "paper": "Written from its paper.",
    "abstract": "Written from its abstract, from memory and from other people's code: neither its text nor its "
    "authors' code could be read.",
    None: "",
}


def page(method: Method) -> str:
    """The page of one method."""
    text = inspect.getdoc(method.function) or ""
    summary, _, body = text.partition("\n")
    parameters = [
        f"| `{name}` | `{text.partition(' = ')[0][2:]}` | `{text.partition(' = ')[2]}` |"
        for name, text in method.parameters.items()
    ]
    table = (
        ["| parameter | type | default |", "| --- | --- | --- |", *parameters, ""]
        if parameters
        else ["It has no parameters.", ""]
    )
    source = f"src/tutelage/methods/{method.name}"
    source += "" if (FOLDER.parent.parent / source).is_dir() else ".py"
    return "\n".join(
        [
            f"# {method.name}",
            "",
            f"{summary}",
            "",
            f"*{method.family}* · {method.paper}",
            "",
            f"Task: {f'`{method.task}`' if method.task else 'any'}. {EVIDENCE[method.evidence]}",
            "",
            *table,
            "```text",
            body.strip("\n"),
            "```",
            "",
            f"Source: [`{source}`](../../{source}). On a terminal: `tutelage methods {method.name}`.",
            "",
        ]
    )


def pages() -> dict[str, str]:
    """File name to text, for the methods that live in this repository."""
    found = [find(name) for name in installed()]
    return {f"{m.name}.md": page(m) for m in found if m.function.__module__ == f"tutelage.methods.{m.name}"}


if __name__ == "__main__":
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
