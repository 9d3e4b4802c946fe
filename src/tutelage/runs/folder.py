"""The folder of one run: what it was told, what it measured, what it made."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout

from tutelage.config import Config
from tutelage.errors import TutelageError, one_line
from tutelage.files import atomic_write

CONFIG, INPUTS, VERSIONS, METRICS, RESULT, TRACKING = (
    "config.yaml",
    "inputs.json",
    "versions.json",
    "metrics.jsonl",
    "result.json",
    "tracking",
)

DATA = "training data"
"""The name of the data's fingerprint among the inputs."""


class RunFolder:
    """Reads and writes what a run keeps.

    ``config.yaml`` the resolved configuration; ``inputs.json`` the fingerprints of data and teachers;
    ``versions.json``; ``metrics.jsonl`` a line an epoch; ``result.json``; ``student.safetensors``; ``checkpoints/``;
    ``tracking/`` the files of trackers, if any follow it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def lock(self) -> AbstractContextManager[Any]:
        """Hold the folder for this process; a killed one lets go of it by itself."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._refuse_strangers()  # before the lock leaves its file among them
            return FileLock(self.path / ".lock").acquire(timeout=0)
        except Timeout:
            raise TutelageError(
                f"another process is at work in {self.path}; wait for it, or choose another folder"
            ) from None
        except OSError as error:
            raise TutelageError(
                f"cannot write in {self.path}: {error.strerror or one_line(error)}; choose another folder"
            ) from error

    def claim(self, config: Config, inputs: Mapping[str, str]) -> None:
        """Make it this run's folder.

        Raises:
            TutelageError: when it holds a different run, or other things; nothing is touched then.
        """
        if self._has_trained():
            # A field that came after the folder had its default then.
            there = {**yaml.safe_load(Config().as_yaml()), **self._read_config(), **self._read(INPUTS, {})}
            ours = {**yaml.safe_load(config.as_yaml()), **inputs}
            if len(there.get(DATA, "")) == 16:  # of an older version: the training part's images and labels alone
                ours[DATA] = ours[DATA][:16]
            differing = [name for name in {**there, **ours} if there.get(name) != ours.get(name)]
            differing = [name for name in differing if name != "answers"]  # where they lie changes none of them
            if not any(name.startswith("teacher ") for name in differing):  # by their fingerprints: they have moved
                differing = [name for name in differing if name != "teacher"]
            if differing:
                shown = "; ".join(f"{n}: {there.get(n)!r} there, {ours.get(n)!r} here" for n in differing[:3])
                more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
                raise TutelageError(
                    f"{self.path} holds a different run ({shown}{more}); choose another folder or remove it"
                )
            return
        self._refuse_strangers()
        atomic_write(
            self.path / CONFIG, config.as_yaml().encode()
        )  # first: killed after it, the rest is known to be ours
        self._write(INPUTS, dict(inputs))
        self._write(VERSIONS, versions())

    def _refuse_strangers(self) -> None:
        if self._has_trained():
            return
        # A run that stopped before its first epoch, over a misspelt name say, has left nothing worth keeping.
        own = {CONFIG, INPUTS, VERSIONS, METRICS, TRACKING, "checkpoints"} if (self.path / CONFIG).exists() else set()
        strangers = [
            entry.name
            for entry in self.path.iterdir()
            if entry.name not in own | {".lock"} and not _left_by_a_kill(entry.name)
        ]
        if strangers:
            raise TutelageError(
                f"{self.path} is not empty and holds no run ({', '.join(sorted(strangers)[:3])}); choose another folder"
            )

    def _has_trained(self) -> bool:
        any_epoch = (self.path / RESULT).exists() or any((self.path / "checkpoints").glob("*.ckpt"))
        return any_epoch and (self.path / CONFIG).exists()

    def result(self) -> dict[str, Any] | None:
        """What a finished run measured; ``None`` for one that is not finished."""
        result: dict[str, Any] | None = self._read(RESULT, None)
        return result

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Mark the run as finished."""
        self._write(RESULT, dict(result))

    def start_metrics(self) -> None:
        """Begin the list of epochs anew: a run that goes on reports those behind it again."""
        atomic_write(self.path / METRICS, b"")

    def history(self) -> tuple[dict[str, Any], ...]:
        """The epochs' records."""
        try:
            lines = (self.path / METRICS).read_text(encoding="utf-8").splitlines()
            return tuple(json.loads(line) for line in lines)
        except (OSError, ValueError):
            return ()  # the result does not depend on them

    def add_metrics(self, record: Mapping[str, Any]) -> None:
        """Add an epoch's line."""
        try:
            with (self.path / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, allow_nan=False) + "\n")
        except OSError as error:
            raise TutelageError(f"cannot write {self.path / METRICS}: {error.strerror or one_line(error)}") from error

    def _read_config(self) -> dict[str, Any]:
        try:
            read: dict[str, Any] = yaml.safe_load((self.path / CONFIG).read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise TutelageError(
                f"cannot read {self.path / CONFIG}: {one_line(error)}; choose another folder"
            ) from error
        return read if isinstance(read, dict) else {}

    def _read(self, name: str, default: Any) -> Any:
        file = self.path / name
        if not file.exists():
            return default
        try:
            read = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(read, dict):
                raise ValueError(f"it holds a {type(read).__name__} and no object")
        except (OSError, ValueError) as error:
            raise TutelageError(f"cannot read {file}: {one_line(error)}; remove it or choose another folder") from error
        return read

    def _write(self, name: str, value: Any) -> None:
        atomic_write(self.path / name, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def _left_by_a_kill(name: str) -> bool:
    return name.startswith(f".{CONFIG}.") and name.endswith(".tmp")


def versions() -> dict[str, str]:
    """What the numbers may depend on besides the configuration."""
    packages = ("tutelage", "numpy", "scikit-learn", "accelerate", "safetensors")
    return {"python": platform.python_version(), "platform": platform.platform(), "torch": torch.__version__} | {
        package: version(package) for package in packages
    }
