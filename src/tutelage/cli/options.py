"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tutelage.errors import TutelageError
from tutelage.files import as_path
from tutelage.text import value_text

PATH: Any = {"parser": as_path, "metavar": "PATH"}
"""Of an option or argument that is a path: ``~`` is expanded, also where no shell has done it (``--out=~/run``)."""

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Track = Annotated[
    str | None,
    typer.Option(
        "--track",
        help="Experiment trackers, comma-separated: tensorboard, wandb, mlflow, trackio, ...",
        metavar="NAMES",
    ),
]

TrustAll = Annotated[
    bool,
    typer.Option("--trust", help="Import code that files name (module:attr), not only what is typed here."),
]


def settings_from(sets: list[str]) -> dict[str, Any]:
    """Values by name, from the texts after ``--set``."""
    from tutelage.parsing import parse_yaml

    settings: dict[str, Any] = {}
    for text in sets:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise TutelageError(f"--set takes name=value, got {text!r}; for instance --set temperature=2")
        if name.strip() in settings:
            raise TutelageError(f"--set gives {name.strip()!r} twice; give it once")
        try:
            settings[name.strip()] = parse_yaml(value)
        except ValueError:  # ordinary text, such as a pattern with a star
            settings[name.strip()] = value
    return settings


def table_of(value: Any, what: str) -> dict[str, Any]:
    """A table of a file, empty where the file has none.

    Raises:
        TutelageError: it is something else; ``what`` names it.
    """
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise TutelageError(f"{what} must be a table with names, got {value_text(value)}")
    return value
