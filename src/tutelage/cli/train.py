"""The commands that train one network: their options are the fields of the configuration."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from tutelage.cli.options import Json, Track, TrustAll, settings_from, table_of
from tutelage.config import DEFAULT_METHOD, FLAG, Config, read_config

Out = Annotated[Path | None, typer.Option("--out", help="Folder of the run.  [default: runs/METHOD-seedN]")]
File = Annotated[
    Path | None, typer.Option("--config", help="TOML or YAML file of the same fields; options override it.")
]
Sets = Annotated[list[str] | None, typer.Option("--set", help="A parameter of the method, as name=value; repeatable.")]


def _options(**renamed: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each field of ``Config``, under the field's name or another one."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(function, eval_str=True).parameters.values()
        shown = [p for p in own if p.kind is not p.VAR_KEYWORD]
        for name, field in Config.model_fields.items():
            if name in ("settings", "method") and name not in renamed:
                continue
            option = "--" + renamed.get(name, name).replace("_", "-")
            default = "" if field.default in (None, ()) else f" [default: {field.default}]"
            text = (field.description or "") + default
            if field.annotation in FLAG:
                kind: Any = Annotated[bool | None, typer.Option(f"{option}/--no-{option[2:]}", help=text)]
            elif name in ("teacher", "milestones"):
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


def _metavar(annotation: Any) -> str:
    names = {int: "INT", float: "FLOAT", int | None: "INT", float | None: "FLOAT"}
    return names.get(annotation, "TEXT")


@_options(student="model", method="method")
def train(
    out: Out = None,
    config: File = None,
    set_: Sets = None,
    track: Track = None,
    trust: TrustAll = False,
    json_: Json = False,
    **fields: Any,
) -> None:
    """Train a network without a teacher: a future teacher, or a student to compare with."""
    _train("train", out, config, set_, track, trust, json_, fields["fields"])


@_options(student="student", method="method")
def distill(
    out: Out = None,
    config: File = None,
    set_: Sets = None,
    track: Track = None,
    trust: TrustAll = False,
    json_: Json = False,
    **fields: Any,
) -> None:
    """Train a student under a teacher."""
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
    out = out or Path("runs") / f"{config.method}-seed{config.seed}"
    from tutelage.report.console import show, side_console, watching
    from tutelage.runs import execute
    from tutelage.runs.commands import as_python
    from tutelage.trust import typed

    names = typed(fields.get("student"), *fields.get("teacher", ()), fields.get("method"))
    console = side_console()
    if not as_json:
        console.print(f"[dim]# in Python:[/]\n[dim]{as_python(config, out)}[/]", highlight=False)
    with watching(console, quiet=as_json) as report:
        result = execute(config, out, report=report, track=track, trust=trust or names)
    if as_json and result.metrics:
        print(json.dumps({**result.metrics, "folder": str(out)}, allow_nan=False))
    elif result.metrics:  # of several processes only the first has measured
        show(result)
