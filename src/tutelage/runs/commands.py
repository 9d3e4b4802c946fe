"""The command line and the Python call that correspond to a configuration."""

from __future__ import annotations

import shlex
import typing
from pathlib import Path

from tutelage.config import DEFAULT_METHOD, FLAG, Config


def _command(config: Config) -> str:
    return "distill" if config.teacher else "train"


def _non_defaults(config: Config) -> dict[str, object]:
    """The fields that differ from their defaults."""
    defaults = {name: field.default for name, field in Config.model_fields.items()}
    defaults["method"] = DEFAULT_METHOD[_command(config)]
    fields = {name: getattr(config, name) for name in defaults if getattr(config, name) != defaults[name]}
    return fields | ({"lr": config.lr} if "optimizer" in fields else {})  # other defaults may follow from no rate


def as_command(config: Config) -> str:
    """The command line of the run, without its folder."""
    words = ["tutelage", _command(config)]
    for name, value in _non_defaults(config).items():
        option = "--" + ("model" if name == "student" and not config.teacher else name).replace("_", "-")
        if Config.model_fields[name].annotation in FLAG:
            words.append(option if value else "--no-" + option[2:])
        elif isinstance(value, tuple) and typing.get_origin(Config.model_fields[name].annotation) is not tuple:
            words += [option, ",".join(map(str, value))]  # one option with several numbers
        elif isinstance(value, tuple):
            words += [word for item in value for word in (option, str(item))]
        elif isinstance(value, dict):
            words += [word for key, entry in value.items() for word in ("--set", f"{key}={entry}")]
        else:
            words += [option, str(value).lower() if isinstance(value, bool) else str(value)]
    return shlex.join(words)


def as_python(config: Config, out: Path) -> str:
    """The equivalent call of ``tutelage.train`` or ``tutelage.distill``."""
    fields = _non_defaults(config)
    words = []
    if config.teacher:
        words.append(repr(fields.pop("teacher") if len(config.teacher) > 1 else config.teacher[0]))
        fields.pop("teacher", None)
    words += [repr(config.student), repr(config.data)]
    words += [f"{name}={value!r}" for name, value in fields.items() if name not in ("student", "data")]
    return f"tutelage.{_command(config)}({', '.join([*words, f'out={str(out)!r}'])})"
