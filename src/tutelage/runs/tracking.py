"""Experiment trackers: TensorBoard, Weights & Biases, MLflow, trackio, and others that accelerate supports."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tutelage.errors import TutelageError, TutelageWarning, one_line, unknown
from tutelage.training.loop import Record

PROJECT = "tutelage"
HyperParameter = str | int | float | None


class Trackers:
    """Report a run to experiment trackers: its configuration, each epoch, and the test metrics at the end.

    Trackers do not affect the run. A tracker that fails is left out with a warning, and the run continues. A run that
    is resumed reports its earlier epochs again, under the same steps: files of a tracker in the run's folder are
    replaced, and a server gets another run with all epochs.

    Args:
        names: the trackers, comma-separated, or ``None``.
        folder: for trackers that write files, each in a subfolder of its name.

    Raises:
        TutelageError: a name is unknown, its package is not installed, or it writes files and there is no folder.
    """

    def __init__(self, names: str | None, folder: Path | None) -> None:
        self._makers: dict[str, Callable[[], Any]] = {}
        for name in names.split(",") if names is not None else ():
            self._makers[name.strip()] = _find(name.strip(), folder)
        self._running: dict[str, Any] = {}
        self._epochs = 0

    def start(self, config: Mapping[str, Any]) -> None:
        """Start to report a run with this configuration; of several processes, only the first calls this."""
        for name, make in self._makers.items():
            self._guard(name, partial(self._begin, name, make, dict(_flat(config))))

    def _begin(self, name: str, make: Callable[[], Any], values: dict[str, HyperParameter]) -> None:
        from accelerate import PartialState

        PartialState()  # accelerate's logging requires it
        tracker = make()
        tracker.start()
        tracker.store_init_configuration(values)
        self._running[name] = tracker

    def epoch(self, record: Record) -> None:
        """Report an epoch as ``fitN/...``. The step is the epoch's number in the run, from 1, over all fits."""
        self._epochs += 1
        fit = f"fit{record['fit']}"
        values = {f"{fit}/lr": record["lr"]}
        for learner, entry in record["learners"].items():
            values |= {f"{fit}/{learner}/{name}": value for name, value in entry.items()}
        self._log(values)

    def test(self, measured: Mapping[str, Any]) -> None:
        """Report the test metrics as ``test/...``, at the step of the last epoch."""
        self._log({f"test/{name}": value for name, value in measured.items() if isinstance(value, int | float)})

    def close(self) -> None:
        """Finish all trackers."""
        for name, tracker in list(self._running.items()):
            self._guard(name, tracker.finish)
        self._running.clear()

    def _log(self, values: dict[str, float]) -> None:
        for name, tracker in list(self._running.items()):
            self._guard(name, partial(tracker.log, values, step=self._epochs))

    def _guard(self, name: str, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:  # a server that is down, a full disk, no login: training must not stop
            self._running.pop(name, None)
            warnings.warn(
                f"tracker {name!r} failed ({one_line(error)}); the run continues without it",
                TutelageWarning,
                stacklevel=4,
            )


def _find(name: str, folder: Path | None) -> Callable[[], Any]:
    """Return a function that makes the tracker of this name."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
    from accelerate.utils import LoggerType

    if name not in LOGGER_TYPE_TO_CLASS:
        raise unknown("tracker", name, LOGGER_TYPE_TO_CLASS)
    if name in LoggerType.list() and name not in map(str, get_available_trackers()):
        raise TutelageError(f"tracker {name!r} is not installed: pip install {name}")
    kind = LOGGER_TYPE_TO_CLASS[name]
    if not kind.requires_logging_directory:
        return partial(kind, PROJECT)
    if folder is None:
        raise TutelageError(f"tracker {name!r} writes files; give the run a folder with out=...")
    return partial(_with_files, kind, folder / name)


def _with_files(kind: Callable[[str, str], Any], folder: Path) -> Any:
    shutil.rmtree(folder, ignore_errors=True)  # all epochs are reported again
    folder.mkdir(parents=True)
    return kind(PROJECT, str(folder))


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, HyperParameter]]:
    """The values by dotted name, converted to types that every tracker accepts."""
    flat: list[tuple[str, HyperParameter]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat += _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            flat.append((prefix + name, ", ".join(map(str, value))))
        else:
            flat.append((prefix + name, value))
    return flat
