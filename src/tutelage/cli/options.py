"""Options of several commands."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

import typer

from tutelage.config import FLAG, Config
from tutelage.errors import TutelageError
from tutelage.files import as_path
from tutelage.text import value_text

PATH: Any = {"parser": as_path}
"""Settings of arguments that are paths: ``~`` is expanded."""

PATH_OPTION: Any = {**PATH, "metavar": "<path>"}
"""Settings of options that are paths: ``~`` is expanded, also in ``--out=~/run``."""

_KEYWORD = inspect.Parameter.KEYWORD_ONLY

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Track = Annotated[
    str | None,
    typer.Option(
        "--track",
        help="Experiment trackers, comma-separated: tensorboard, wandb, mlflow, trackio, ...",
        metavar="<names>",
    ),
]

Mean = Annotated[
    str | None,
    typer.Option(
        help="Mean of each channel, for weights that record no normalization: 0.485,0.456,0.406.", metavar="<numbers>"
    ),
]
Std = Annotated[
    str | None,
    typer.Option(help="Standard deviation of each channel, with --mean: 0.229,0.224,0.225.", metavar="<numbers>"),
]

TrustAll = Annotated[
    bool,
    typer.Option("--trust", help="Import code that files name (module:attr), not only what is typed here."),
]


Test = Annotated[float | None, typer.Option(help="Fraction of the samples for testing, if there is no test split.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out image files that cannot be decoded.")]


def settings_from(sets: list[str]) -> dict[str, Any]:
    """Parse the texts after ``--set``: values by name."""
    from tutelage.parsing import parse_yaml

    settings: dict[str, Any] = {}
    for text in sets:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise TutelageError(f"--set takes name=value, got {text!r}; for example --set temperature=2")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise TutelageError(f"--set takes UTF-8, got {text!r}; remove all other bytes") from None
        if name.strip() in settings:
            raise TutelageError(f"--set gives {name.strip()!r} twice; give it once")
        try:
            settings[name.strip()] = parse_yaml(value)
        except ValueError:  # ordinary text, such as a pattern with a star
            settings[name.strip()] = value
    return settings


def table_of(value: Any, noun: str) -> dict[str, Any]:
    """Check that a value of a file is a table; ``None`` gives an empty table.

    Raises:
        TutelageError: it is not a table; the message begins with ``noun``.
    """
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise TutelageError(f"{noun} must be a table with names, got {value_text(value)}")
    return value


def config_options(
    names: Iterable[str], defaults: Mapping[str, Any], **renamed: str
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add options for fields of ``Config`` to a command, which receives the typed ones as the argument ``fields``.

    Args:
        names: the fields.
        defaults: default values for the help text, by field.
        renamed: options whose name differs from that of their field.
    """
    names = tuple(names)

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        original = inspect.signature(function, eval_str=True).parameters.values()
        parameters = [p for p in original if p.kind is not p.VAR_KEYWORD]
        for name in names:
            field = Config.model_fields[name]
            option = "--" + renamed.get(name, name).replace("_", "-")
            text = _sentence(field.description or "") + _default_text(defaults.get(name))
            if bool in typing.get_args(field.annotation) and field.annotation not in FLAG:
                off = Annotated[bool, typer.Option(f"--no-{option[2:]}", help=f"Like {option} false.", hidden=True)]
                parameters.append(inspect.Parameter(f"no_{name}", _KEYWORD, default=False, annotation=off))
            if field.annotation in FLAG:
                kind: Any = Annotated[bool | None, typer.Option(f"{option}/--no-{option[2:]}", help=text)]
            elif typing.get_origin(field.annotation) is tuple:
                kind = Annotated[list[str] | None, typer.Option(option, help=text, metavar="<str>")]
            else:
                kind = Annotated[str | None, typer.Option(option, help=text, metavar=_metavar(field.annotation))]
            parameters.append(inspect.Parameter(name, _KEYWORD, default=None, annotation=kind))

        def command(**values: Any) -> None:
            fields = {name: values.pop(name) for name in names if name in values}
            for name in names:
                if values.pop(f"no_{name}", False):
                    fields[name] = fields[name] or "false"
            function(fields={name: value for name, value in fields.items() if value not in (None, [])}, **values)

        command.__name__, command.__doc__ = function.__name__, function.__doc__
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return decorate


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _default_text(default: Any) -> str:
    """A default value as it would be typed; empty if there is none."""
    if default is None or default == ():
        return ""
    typed = str(default).lower() if isinstance(default, bool) else default
    return f"  [default: {','.join(map(str, default)) if isinstance(default, tuple) else typed}]"


def _metavar(annotation: Any) -> str:
    """The type of an option in its help, in the style of typer."""
    types = {int: "<int>", float: "<float>", int | None: "<int>", float | None: "<float>"}
    return types.get(annotation, "<str>")
