"""A configuration as the command line, and as the Python call, that make its run."""

from __future__ import annotations

import shlex
from pathlib import Path

from tutelage.config import DEFAULT_METHOD, FLAG, Config


def _verb(config: Config) -> str:
    return "distill" if config.teacher else "train"


def _said(config: Config) -> dict[str, object]:
    """The fields that have to be named, since they are not what they would be anyway."""
    usual = {name: field.default for name, field in Config.model_fields.items()}
    usual["method"] = DEFAULT_METHOD[_verb(config)]
    return {name: getattr(config, name) for name in usual if getattr(config, name) != usual[name]}


def as_command(config: Config) -> str:
    """The command line of this run, without its folder."""
    words = ["tutelage", _verb(config)]
    for name, value in _said(config).items():
        option = "--" + ("model" if name == "student" and not config.teacher else name).replace("_", "-")
        if Config.model_fields[name].annotation in FLAG:
            words.append(option if value else "--no-" + option[2:])
        elif isinstance(value, tuple):
            words += [word for item in value for word in (option, str(item))]
        elif isinstance(value, dict):
            words += [word for key, entry in value.items() for word in ("--set", f"{key}={entry}")]
        else:
            words += [option, str(value).lower() if isinstance(value, bool) else str(value)]
    return shlex.join(words)


def as_python(config: Config, out: Path) -> str:
    """The call of ``tutelage.train`` or ``tutelage.distill`` that does the same."""
    said = _said(config)
    words = []
    if config.teacher:
        words.append(repr(said.pop("teacher") if len(config.teacher) > 1 else config.teacher[0]))
        said.pop("teacher", None)
    words += [repr(config.student), repr(config.data)]
    words += [f"{name}={value!r}" for name, value in said.items() if name not in ("student", "data")]
    return f"tutelage.{_verb(config)}({', '.join([*words, f'out={str(out)!r}'])})"
