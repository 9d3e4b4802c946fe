"""The commands that train one network; their options are the fields of ``Config``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from tutelage.cli.options import PATH_OPTION, Json, Track, TrustAll, config_options, settings_from, table_of
from tutelage.config import DEFAULT_METHOD, Config, read_config

Out = Annotated[
    Path | None, typer.Option("--out", help="Folder of the run.  [default: runs/METHOD-seedN]", **PATH_OPTION)
]
File = Annotated[
    Path | None,
    typer.Option(
        "--config", help="TOML or YAML file with these fields; options take precedence over it.", **PATH_OPTION
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", help="Set a method parameter: name=value. Repeatable.", metavar="<name=value>"),
]


_FIELDS = tuple(name for name in Config.model_fields if name != "settings")


def _defaults(verb: str) -> dict[str, Any]:
    return {name: Config.model_fields[name].default for name in _FIELDS} | {"method": DEFAULT_METHOD[verb]}


@config_options(_FIELDS, _defaults("train"), student="model")
def train(
    out: Out = None,
    config: File = None,
    set_: Sets = None,
    track: Track = None,
    trust: TrustAll = False,
    json_: Json = False,
    **fields: Any,
) -> None:
    """Train a network without a teacher, as a baseline or as a later teacher."""
    _train("train", out, config, set_, track, trust, json_, fields["fields"])


@config_options(_FIELDS, _defaults("distill"))
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
    recorded = read_config(file) if file else {}
    settings = {**table_of(recorded.pop("settings", None), f"{file}: settings"), **settings_from(sets or [])}
    config = Config(**{"method": DEFAULT_METHOD[verb], **recorded, **fields, "settings": settings})
    out = out or Path("runs") / f"{config.method.rpartition(':')[2]}-seed{config.seed}"
    from tutelage.report.console import print_result, run_progress, stderr_console
    from tutelage.runs import execute
    from tutelage.runs.commands import as_python
    from tutelage.runs.loading_script import add_loading_script
    from tutelage.runs.teacher_labels import warn_of_label_differences
    from tutelage.trust import typed_specs

    names = typed_specs(fields.get("student"), *fields.get("teacher", ()), fields.get("method"))
    warn_of_label_differences(config)
    console = stderr_console()

    def announce(line: str) -> None:
        console.print(line, markup=False, highlight=False)

    if not as_json:
        console.print(f"# in Python:\n{as_python(config, out)}", style="dim", highlight=False)
    with run_progress(console, quiet=as_json) as report:
        lines = None if as_json else announce
        result = execute(config, out, report=report, announce=lines, track=track, trust=trust or names)
    if result.metrics:  # empty in all processes but the first
        add_loading_script(out)
    if as_json and result.metrics:
        print(json.dumps({**result.metrics, "folder": str(out)}, allow_nan=False))
    elif result.metrics:
        print_result(result)
