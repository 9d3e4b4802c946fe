"""The commands that train one network; their options are the fields of ``Config``."""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from tutelage.cli.options import PATH, Json, Track, TrustAll, settings_from, table_of
from tutelage.config import DEFAULT_METHOD, FLAG, Config, read_config

Out = Annotated[Path | None, typer.Option("--out", help="Folder of the run.  [default: runs/METHOD-seedN]", **PATH)]
File = Annotated[
    Path | None,
    typer.Option("--config", help="TOML or YAML file with these fields; options take precedence over it.", **PATH),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", help="Set a method parameter: name=value. Repeatable.", metavar="NAME=VALUE"),
]


def _options(verb: str, **renamed: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each field of ``Config``, under the field's name or another one."""
    defaults = {name: field.default for name, field in Config.model_fields.items()} | {"method": DEFAULT_METHOD[verb]}

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(function, eval_str=True).parameters.values()
        shown = [p for p in own if p.kind is not p.VAR_KEYWORD]
        for name, field in Config.model_fields.items():
            if name in ("settings", "method") and name not in renamed:
                continue
            option = "--" + renamed.get(name, name).replace("_", "-")
            text = _sentence(field.description or "") + _shown(defaults[name])
            if field.annotation in FLAG:
                kind: Any = Annotated[bool | None, typer.Option(f"{option}/--no-{option[2:]}", help=text)]
            elif typing.get_origin(field.annotation) is tuple:
                kind = Annotated[list[str] | None, typer.Option(option, help=text, metavar="TEXT")]
            else:
                kind = Annotated[str | None, typer.Option(option, help=text, metavar=_metavar(field.annotation))]
            shown.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind))

        def command(**values: Any) -> None:
            fields = {name: values.pop(name) for name in Config.model_fields if name in values}
            function(fields={name: value for name, value in fields.items() if value not in (None, [])}, **values)

        command.__name__, command.__doc__ = function.__name__, function.__doc__
        command.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in shown}
        return command

    return decorate


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _shown(default: Any) -> str:
    """A default as an option would be written; nothing for none."""
    if default is None or default == ():
        return ""
    return f"  [default: {','.join(map(str, default)) if isinstance(default, tuple) else default}]"


def _metavar(annotation: Any) -> str:
    names = {int: "INT", float: "FLOAT", int | None: "INT", float | None: "FLOAT"}
    return names.get(annotation, "TEXT")


@_options("train", student="model", method="method")
def train(
    out: Out = None,
    config: File = None,
    set_: Sets = None,
    track: Track = None,
    trust: TrustAll = False,
    json_: Json = False,
    **fields: Any,
) -> None:
    """Train a network without a teacher: a teacher for later, or a baseline."""
    _train("train", out, config, set_, track, trust, json_, fields["fields"])


@_options("distill", method="method")
def distill(
    out: Out = None,
    config: File = None,
    set_: Sets = None,
    track: Track = None,
    trust: TrustAll = False,
    json_: Json = False,
    **fields: Any,
) -> None:
    """Train a student with a teacher (knowledge distillation)."""
    _train("distill", out, config, set_, track, trust, json_, fields["fields"])


def _train(
    verb: str,
    out: Path | None,
    file: Path | None,
    sets: list[str] | None,
    track: str | None,
    trust: bool,
    as_json: bool,
    fields: dict[str, Any],
) -> None:
    read = read_config(file) if file else {}
    settings = {**table_of(read.pop("settings", None), f"{file}: settings"), **settings_from(sets or [])}
    config = Config(**{"method": DEFAULT_METHOD[verb], **read, **fields, "settings": settings})
    out = out or Path("runs") / f"{config.method.rpartition(':')[2]}-seed{config.seed}"
    from tutelage.report.console import show, side_console, watching
    from tutelage.runs import execute
    from tutelage.runs.commands import as_python
    from tutelage.runs.plain import add_script
    from tutelage.runs.teachers import warn_of_other_labels
    from tutelage.trust import typed

    names = typed(fields.get("student"), *fields.get("teacher", ()), fields.get("method"))
    warn_of_other_labels(config)
    console = side_console()

    def announce(line: str) -> None:
        console.print(line, markup=False, highlight=False)

    if not as_json:
        console.print(f"# in Python:\n{as_python(config, out)}", style="dim", highlight=False)
    with watching(console, quiet=as_json) as report:
        lines = None if as_json else announce
        result = execute(config, out, report=report, announce=lines, track=track, trust=trust or names)
    if result.metrics:  # of several processes only the first has measured
        add_script(out)
    if as_json and result.metrics:
        print(json.dumps({**result.metrics, "folder": str(out)}, allow_nan=False))
    elif result.metrics:
        show(result)
