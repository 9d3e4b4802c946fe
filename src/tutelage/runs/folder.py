"""The folder of one run: its configuration, its records and its result."""

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

CONFIG, INPUTS, VERSIONS, METRICS, RESULT, WEIGHTS, SAMPLES, LOAD, TRACKING = (
    "config.yaml",
    "inputs.json",
    "versions.json",
    "metrics.jsonl",
    "result.json",
    "student.safetensors",
    "samples.safetensors",
    "load.py",
    "tracking",
)
_FILES = {CONFIG, INPUTS, VERSIONS, METRICS, RESULT, WEIGHTS, SAMPLES, LOAD}

DATA, NETWORK_CODE = "training data", "network source"
"""Keys of ``inputs.json``: the fingerprint of the data, and the hash of the source code of the user's networks."""


class RunFolder:
    """Reads and writes the files of a run.

    ``config.yaml``: the resolved configuration; ``inputs.json``: fingerprints of data and teachers; ``versions.json``;
    ``metrics.jsonl``: one line per epoch; ``result.json``; ``student.safetensors``, and ``load.py``, which loads it in
    plain PyTorch; ``samples.safetensors``: results for each training sample, of methods that have any;
    ``checkpoints/``; ``tracking/``: files of experiment trackers.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._folder = path, LockedFolder(path, "process")
        self.check, self.write = self._folder.check, self._folder.write

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder for this process, and remove temporary files of processes that were killed.

        Raises:
            TutelageError: another process holds the lock, the folder contains other files, or it is not writable.
        """
        self._check_no_foreign_files()  # before the lock file is made
        with self._folder.locked():
            remove_abandoned(self.path, _FILES.__contains__)
            yield

    def finished(self, config: Config, inputs: Mapping[str, str]) -> dict[str, Any] | None:
        """The result of this run if it is finished, else ``None``. Needs no lock and writes nothing.

        Raises:
            TutelageError: the folder contains a different run.
        """
        if not self._has_trained() or (result := self.result()) is None:
            return None
        self._check_same_run(config, inputs)
        return result

    def claim(self, config: Config, inputs: Mapping[str, str]) -> None:
        """Write the files that identify the run, unless the folder already contains this run.

        Raises:
            TutelageError: the folder contains a different run or other files; it is then left unchanged.
        """
        if self._has_trained():
            self._check_same_run(config, inputs)
            return
        self._check_no_foreign_files()
        # The configuration is written first: it marks the folder as a run's if the process is killed before the next.
        self.write(self.path / CONFIG, config.as_yaml().encode())
        self._write(INPUTS, dict(inputs))
        self._write(VERSIONS, versions())

    def _check_same_run(self, config: Config, inputs: Mapping[str, str]) -> None:
        # Fields that an older version did not have had their default values.
        recorded = {**parse_yaml(Config().as_yaml()), **self._read_config(), **self._read(INPUTS, {})}
        requested = {**parse_yaml(config.as_yaml()), **inputs}
        if len(str(recorded.get(DATA))) == 16:  # an older version: of the training split only
            requested[DATA] = requested[DATA][:16]
        for old, name in (("answers", "teacher_cache"), ("answers_as", "teacher_cache_dtype")):
            if old in recorded:
                recorded[name] = recorded.pop(old)
        if NETWORK_CODE not in recorded:  # an older version did not record it
            requested.pop(NETWORK_CODE, None)
        differing = [name for name in {**recorded, **requested} if recorded.get(name) != requested.get(name)]
        without_effect = ("teacher_cache", "cache", "workers")
        differing = [name for name in differing if name not in without_effect]
        if not any(name.startswith("teacher ") for name in differing):  # the same fingerprints: the files have moved
            differing = [name for name in differing if name != "teacher"]
        if differing:
            differences = "; ".join(
                f"{n}: {value_text(recorded.get(n))} there, {value_text(requested.get(n))} here" for n in differing[:3]
            )
            more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
            raise TutelageError(
                f"{self.path} holds a different run ({differences}{more}); choose another folder or remove it"
            )

    def _check_no_foreign_files(self) -> None:
        if not self.path.is_dir() or self._has_trained():
            return
        # Files of a run that stopped before its first epoch, for example because of a misspelt name, may be replaced.
        replaceable = (
            {CONFIG, INPUTS, VERSIONS, METRICS, TRACKING, "checkpoints"} if self._config_is_of_a_run() else set()
        )
        foreign = [
            entry.name
            for entry in self.path.iterdir()
            if entry.name not in replaceable | {LOCK} and not is_temporary(entry.name, _FILES.__contains__)
        ]
        if foreign:
            raise TutelageError(
                f"{self.path} is not empty and holds no run ({', '.join(sorted(foreign)[:3])}); choose another folder"
            )

    def _has_trained(self) -> bool:
        files = (self.path / RESULT, self.path / WEIGHTS, *(self.path / "checkpoints").glob("*.ckpt"))
        return any(file.exists() for file in files) and (self.path / CONFIG).exists()

    def _config_is_of_a_run(self) -> bool:
        """Whether a run wrote the folder's ``config.yaml``, rather than another program or the user.

        If so, the folder also contains a lock or files of the run, all keys are fields, and the text is as runs write.
        """
        file = self.path / CONFIG
        if not file.exists() or all(entry.name == CONFIG for entry in self.path.iterdir()):
            return False
        config = self._read_config()
        as_written = write_yaml(config).encode() if config else b""
        return config.keys() <= Config.model_fields.keys() and read_file(file) == as_written

    def result(self) -> dict[str, Any] | None:
        """The content of ``result.json``; ``None`` if the run is not finished."""
        result: dict[str, Any] | None = self._read(RESULT, None)
        if result is not None:
            check_result(self.path / RESULT, result)
        return result

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Mark the run as finished."""
        self._write(RESULT, dict(result))

    def start_metrics(self) -> None:
        """Empty the list of epochs: a run that is resumed reports its earlier epochs again."""
        self.write(self.path / METRICS, b"")

    def history(self) -> tuple[dict[str, Any], ...]:
        """The records of the epochs, empty if they cannot be read."""
        try:
            return read_epochs(self.path / METRICS)
        except TutelageError:
            return ()  # no result depends on them

    def add_metrics(self, record: Mapping[str, Any]) -> None:
        """Append the line of an epoch."""
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
                raise ValueError(f"expected an object and found a {type(read).__name__}")
        except (OSError, ValueError) as error:
            raise TutelageError(f"cannot read {file}: {one_line(error)}; remove it or choose another folder") from error
        return read

    def _write(self, name: str, value: Any) -> None:
        self.write(self.path / name, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def versions() -> dict[str, str]:
    """Versions of the software that results may depend on."""
    packages = ("tutelage", "numpy", "scikit-learn", "accelerate", "safetensors")
    return {"python": platform.python_version(), "platform": platform.platform(), "torch": torch.__version__} | {
        package: version(package) for package in packages
    }
