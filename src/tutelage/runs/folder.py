"""The folder of one run: what it was told, what it measured, what it made."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tutelage.config import Config
from tutelage.errors import TutelageError, one_line
from tutelage.files import LOCK, LockedFolder, is_temporary, read_file, remove_abandoned
from tutelage.parsing import parse_json, parse_yaml, write_yaml
from tutelage.runs.schema import check_result, read_epochs
from tutelage.text import value_text

CONFIG, INPUTS, VERSIONS, METRICS, RESULT, WEIGHTS, LOAD, TRACKING = (
    "config.yaml",
    "inputs.json",
    "versions.json",
    "metrics.jsonl",
    "result.json",
    "student.safetensors",
    "load.py",
    "tracking",
)
_FILES = {CONFIG, INPUTS, VERSIONS, METRICS, RESULT, WEIGHTS, LOAD}

DATA, NETWORK_CODE = "training data", "network source"
"""The names, among the inputs, of the data's fingerprint and of the hash of outside networks' code."""


class RunFolder:
    """Reads and writes what a run keeps.

    ``config.yaml`` the resolved configuration; ``inputs.json`` the fingerprints of data and teachers;
    ``versions.json``; ``metrics.jsonl`` a line an epoch; ``result.json``; ``student.safetensors``, and ``load.py``
    to load it in plain PyTorch; ``checkpoints/``; ``tracking/`` the files of trackers, if any follow it.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._folder = path, LockedFolder(path, "process")
        self.check, self.write = self._folder.check, self._folder.write

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder for this process, and remove what killed processes left of files that they were writing.

        Raises:
            TutelageError: another process holds it, it holds other things, or nothing can be written there.
        """
        self._refuse_strangers()  # before the lock leaves its file among them
        with self._folder.locked():
            remove_abandoned(self.path, _FILES.__contains__)
            yield

    def finished(self, config: Config, inputs: Mapping[str, str]) -> dict[str, Any] | None:
        """What this run measured, if it is finished; ``None`` if not. Needs no lock and writes nothing.

        Raises:
            TutelageError: when the folder holds a different run.
        """
        if not self._has_trained() or (result := self.result()) is None:
            return None
        self._refuse_another(config, inputs)
        return result

    def claim(self, config: Config, inputs: Mapping[str, str]) -> None:
        """Make it this run's folder.

        Raises:
            TutelageError: when it holds a different run, or other things; nothing is touched then.
        """
        if self._has_trained():
            self._refuse_another(config, inputs)
            return
        self._refuse_strangers()
        # The configuration comes first: a run that is killed after it leaves a folder that is known to be one.
        self.write(self.path / CONFIG, config.as_yaml().encode())
        self._write(INPUTS, dict(inputs))
        self._write(VERSIONS, versions())

    def _refuse_another(self, config: Config, inputs: Mapping[str, str]) -> None:
        # A field that came after the folder had its default then.
        there = {**parse_yaml(Config().as_yaml()), **self._read_config(), **self._read(INPUTS, {})}
        ours = {**parse_yaml(config.as_yaml()), **inputs}
        if len(str(there.get(DATA))) == 16:  # of an older version: the training part's images and labels alone
            ours[DATA] = ours[DATA][:16]
        for old, name in (
            ("answers", "teacher_cache"),
            ("answers_as", "teacher_cache_dtype"),
        ):  # older names
            if old in there:
                there[name] = there.pop(old)
        if NETWORK_CODE not in there:  # an older version did not record it
            ours.pop(NETWORK_CODE, None)
        differing = [name for name in {**there, **ours} if there.get(name) != ours.get(name)]
        differing = [name for name in differing if name not in ("teacher_cache", "workers")]  # they change no number
        if not any(name.startswith("teacher ") for name in differing):  # by their fingerprints: they have moved
            differing = [name for name in differing if name != "teacher"]
        if differing:
            shown = "; ".join(
                f"{n}: {value_text(there.get(n))} there, {value_text(ours.get(n))} here" for n in differing[:3]
            )
            more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
            raise TutelageError(
                f"{self.path} holds a different run ({shown}{more}); choose another folder or remove it"
            )

    def _refuse_strangers(self) -> None:
        if not self.path.is_dir() or self._has_trained():
            return
        # A run that stopped before its first epoch, over a misspelt name say, has left nothing worth keeping.
        own = {CONFIG, INPUTS, VERSIONS, METRICS, TRACKING, "checkpoints"} if self._is_a_runs() else set()
        strangers = [
            entry.name
            for entry in self.path.iterdir()
            if entry.name not in own | {LOCK} and not is_temporary(entry.name, _FILES.__contains__)
        ]
        if strangers:
            raise TutelageError(
                f"{self.path} is not empty and holds no run ({', '.join(sorted(strangers)[:3])}); choose another folder"
            )

    def _has_trained(self) -> bool:
        kept = (self.path / RESULT, self.path / WEIGHTS, *(self.path / "checkpoints").glob("*.ckpt"))
        return any(file.exists() for file in kept) and (self.path / CONFIG).exists()

    def _is_a_runs(self) -> bool:
        """Whether a run has written the folder's ``config.yaml``, and neither another program nor the user.

        A run's has a lock or files of the run beside it, holds nothing but fields, and looks as runs write it.
        """
        file = self.path / CONFIG
        if not file.exists() or all(entry.name == CONFIG for entry in self.path.iterdir()):
            return False
        config = self._read_config()
        as_written = write_yaml(config).encode() if config else b""
        return config.keys() <= Config.model_fields.keys() and read_file(file) == as_written

    def result(self) -> dict[str, Any] | None:
        """What a finished run measured; ``None`` for one that is not finished."""
        result: dict[str, Any] | None = self._read(RESULT, None)
        if result is not None:
            check_result(self.path / RESULT, result)
        return result

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Mark the run as finished."""
        self._write(RESULT, dict(result))

    def start_metrics(self) -> None:
        """Begin the list of epochs anew: a run that goes on reports those behind it again."""
        self.write(self.path / METRICS, b"")

    def history(self) -> tuple[dict[str, Any], ...]:
        """The epochs' records."""
        try:
            return read_epochs(self.path / METRICS)
        except TutelageError:
            return ()  # the result does not depend on them

    def add_metrics(self, record: Mapping[str, Any]) -> None:
        """Add an epoch's line."""
        self._folder.append(self.path / METRICS, json.dumps(record, allow_nan=False) + "\n")

    def _read_config(self) -> dict[str, Any]:
        try:
            read = parse_yaml(read_file(self.path / CONFIG))
        except (OSError, ValueError) as error:
            raise TutelageError(
                f"cannot read {self.path / CONFIG}: {one_line(error)}; choose another folder"
            ) from error
        return read if isinstance(read, dict) else {}

    def _read(self, name: str, default: Any) -> Any:
        file = self.path / name
        if not file.exists():
            return default
        try:
            read = parse_json(read_file(file))
            if not isinstance(read, dict):
                raise ValueError(f"it holds a {type(read).__name__} and no object")
        except (OSError, ValueError) as error:
            raise TutelageError(f"cannot read {file}: {one_line(error)}; remove it or choose another folder") from error
        return read

    def _write(self, name: str, value: Any) -> None:
        self.write(self.path / name, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def versions() -> dict[str, str]:
    """What the numbers may depend on besides the configuration."""
    packages = ("tutelage", "numpy", "scikit-learn", "accelerate", "safetensors")
    return {"python": platform.python_version(), "platform": platform.platform(), "torch": torch.__version__} | {
        package: version(package) for package in packages
    }
