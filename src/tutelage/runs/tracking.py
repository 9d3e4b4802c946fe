"""Trackers that follow a run: TensorBoard, Weights & Biases, MLflow, trackio, and what else accelerate knows."""

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
    """Those that are told of a run: its configuration, each epoch, and the test numbers in the end.

    Following is no part of what a run is. One that fails is left out with a warning, and the run goes on. A run that
    was stopped reports the epochs behind it again, under the same steps as before: what a tracker keeps in the run's
    folder begins anew, and on a server there is another run, with every epoch.

    Args:
        names: with commas between them; ``None`` for nobody.
        folder: where those that write files do so, each in a folder of its name.

    Raises:
        TutelageError: a name is unknown, its package is not installed, or it writes files and there is no folder.
    """

    def __init__(self, names: str | None, folder: Path | None) -> None:
        found = {name.strip(): _find(name.strip(), folder) for name in names.split(",")} if names is not None else {}
        self._makers: dict[str, Callable[[], Any]] = found
        self._running: dict[str, Any] = {}
        self._epochs = 0

    def start(self, config: Mapping[str, Any]) -> None:
        """Begin to report a run of this configuration. In the first of several processes alone."""
        for name, make in self._makers.items():
            self._guard(name, partial(self._begin, name, make, dict(_flat(config))))

    def _begin(self, name: str, make: Callable[[], Any], values: dict[str, HyperParameter]) -> None:
        from accelerate import PartialState

        PartialState()  # accelerate's logging asks for it
        tracker = make()
        tracker.start()
        tracker.store_init_configuration(values)
        self._running[name] = tracker

    def epoch(self, record: Record) -> None:
        """Report an epoch, as ``fitN/...``. The step is its number in the run, from 1, over all fits."""
        self._epochs += 1
        fit = f"fit{record['fit']}"
        values = {f"{fit}/lr": record["lr"]}
        for learner, entry in record["learners"].items():
            values |= {f"{fit}/{learner}/{name}": value for name, value in entry.items()}
        self._log(values)

    def test(self, measured: Mapping[str, Any]) -> None:
        """Report the numbers of the test part, as ``test/...``, at the last epoch's step."""
        self._log({f"test/{name}": value for name, value in measured.items() if isinstance(value, int | float)})

    def close(self) -> None:
        """End the reports."""
        for name, tracker in list(self._running.items()):
            self._guard(name, tracker.finish)
        self._running.clear()

    def _log(self, values: dict[str, float]) -> None:
        for name, tracker in list(self._running.items()):
            self._guard(name, partial(tracker.log, values, step=self._epochs))

    def _guard(self, name: str, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:  # a server that is down, a full disk, no login: hours of training do not end by it
            self._running.pop(name, None)
            warnings.warn(
                f"tracker {name!r} failed ({one_line(error)}); the run goes on without it",
                TutelageWarning,
                stacklevel=4,
            )


def _find(name: str, folder: Path | None) -> Callable[[], Any]:
    """What makes the tracker of this name."""
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
    shutil.rmtree(folder, ignore_errors=True)  # every epoch that it held is reported again
    folder.mkdir(parents=True)
    return kind(PROJECT, str(folder))


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, HyperParameter]]:
    """The values under dotted names, each as something that every tracker takes."""
    flat: list[tuple[str, HyperParameter]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat += _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            flat.append((prefix + name, ", ".join(map(str, value))))
        else:
            flat.append((prefix + name, value))
    return flat
