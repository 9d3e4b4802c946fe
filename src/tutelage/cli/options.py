"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tutelage.errors import TutelageError

Json = Annotated[bool, typer.Option("--json", help="Print machine-readable results.")]
Track = Annotated[
    str | None,
    typer.Option("--track", help="Who follows the run: tensorboard, wandb, mlflow, trackio, ...; several by commas."),
]


def settings_from(sets: list[str]) -> dict[str, Any]:
    """Values by name, from the texts after ``--set``."""
    import yaml

    settings = {}
    for text in sets:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise TutelageError(f"--set takes name=value, got {text!r}; for instance --set temperature=2")
        try:
            settings[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            settings[name.strip()] = value
    return settings
