"""Calibration of a finished run's student on its held-out samples."""

from __future__ import annotations

import hashlib
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tutelage.ambient import default_settings
from tutelage.config import OBJECT_PREFIX, Config, Hardware, read_config
from tutelage.data import Data, Split
from tutelage.data.batch import hard_labels
from tutelage.data.configured import load_data
from tutelage.errors import TutelageError, TutelageWarning
from tutelage.evaluation.calibration import calibrated_metrics, fit_calibration, fit_temperature
from tutelage.evaluation.predict import class_logits
from tutelage.files import as_path, read_file
from tutelage.models.calibration import Calibration, Sets
from tutelage.models.tapped import Tapped
from tutelage.models.weights import encode_weights, read_state
from tutelage.parsing import parse_json
from tutelage.runs.folder import CONFIG, DATA, INPUTS, RESULT, WEIGHTS, RunFolder
from tutelage.runs.header import CALIBRATED_DIGEST, WEIGHTS_DIGEST
from tutelage.runs.loading_script import add_loading_script
from tutelage.runs.locate import locate
from tutelage.runs.models import DEFAULT_TASK, open_trained
from tutelage.training.hardware import resolve
from tutelage.trust import Trust, typed_specs


@dataclass(frozen=True)
class Calibrated:
    """A calibration, and what it changes on the test split.

    Attributes:
        calibration: as the weights file records it.
        before: ``nll``, ``brier`` and ``ece`` of the network's own probabilities, and its temperature 1.
        after: the same of the calibrated probabilities, and ``coverage`` and ``set_size`` of the prediction sets.
    """

    calibration: Calibration
    before: dict[str, Any]
    after: dict[str, Any]


@default_settings()
def calibrate(
    run: str | os.PathLike[str],
    data: Data | None = None,
    *,
    coverage: float = 0.9,
    sets: Sets = "lac",
    device: str = "auto",
    trust: Trust | None = None,
) -> Calibrated:
    """Fit temperature and prediction sets on a run's held-out samples, and record them in its weights file.

    The weights do not change. ``predict``, ``evaluate`` and ``export`` then use the calibration; calibrating again
    replaces it. The held-out samples are those of the run: same data, same conditions, same seed.

    Args:
        run: the folder of a finished run of classification.
        data: the ``Data`` of a run whose data was passed as an object; it is split as the run split it.
        coverage: the probability, at least, that a prediction set contains the true class.
        sets: ``lac`` or ``aps``, as in ``fit_calibration``.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        trust: whose code may be imported, as in ``open_model``.

    Raises:
        TutelageError: there is no such run, it held out no samples or too few, or its data has changed.
    """
    name, folder = os.fspath(run), as_path(run)
    if not (folder / CONFIG).is_file() or not (folder / RESULT).is_file():
        raise TutelageError(f"{name} is not the folder of a finished run, which calibrate needs; name one")
    locate(name)  # checks the weights file
    config = _config_of(folder)
    data = _data_of(name, folder, config, data)
    if data.validation is None:
        raise TutelageError(
            f"{name} held out no samples (validation {config.validation:g}), so that nothing is left to calibrate on; "
            "train it again with --validation 0.1"
        )
    network = open_trained(name, data, trust=typed_specs(name) if trust is None else trust)
    task = network.task or data.targets.task
    if task != DEFAULT_TASK:
        raise TutelageError(f"{name} is a network for {task}, and calibrate is for {DEFAULT_TASK}; use another run")
    model = network.model.to(resolve(Hardware(device=device)).device)
    logits, labels = _predictions(model, data, data.validation)
    calibration = fit_calibration(logits, labels, coverage=coverage, sets=sets)
    if fit_temperature(logits, labels) is None:
        warnings.warn(
            f"the {calibration.samples} held-out samples of {name} determine no temperature, since all are predicted "
            "correctly or no better than by chance; it stays 1",
            TutelageWarning,
            stacklevel=2,
        )
    if bool(data.validation.corrupted.any()):
        warnings.warn(
            f"{int(data.validation.corrupted.sum())} of {len(data.validation)} held-out labels of {name} are wrong; "
            "probabilities and sets are for labels with such noise; hold out correct labels for others",
            TutelageWarning,
            stacklevel=2,
        )
    test_logits, test_labels = _predictions(model, data, data.test)
    after = calibrated_metrics(test_logits, test_labels, calibration)
    unchanged: Calibration = calibration.replace(temperature=1.0)
    before = calibrated_metrics(test_logits, test_labels, unchanged)
    _record(folder, calibration, after)
    return Calibrated(calibration, {key: before[key] for key in ("temperature", "nll", "brier", "ece")}, after)


def _config_of(folder: Path) -> Config:
    fields = read_config(folder / CONFIG)
    return Config(**{key: value for key, value in fields.items() if key in Config.model_fields})


def _data_of(name: str, folder: Path, config: Config, data: Data | None) -> Data:
    """The data of a run with its held-out split.

    Raises:
        TutelageError: it was an object that is not given, or it is not the data that the run was trained on.
    """
    if data is None and config.data.startswith(OBJECT_PREFIX):
        raise TutelageError(
            f"the data of {name} was an object in a Python program: pass it, as tutelage.calibrate({name!r}, data)"
        )
    data = load_data(config) if data is None else data.hold_out(config.validation, config.seed)
    try:
        recorded = parse_json(read_file(folder / INPUTS)).get(DATA)
    except (OSError, ValueError, AttributeError):
        recorded = None
    if recorded not in (data.fingerprint, data.fingerprint[:16]):  # the second: of older versions
        raise TutelageError(
            f"the data {config.data} is not what {name} was trained on, so its held-out samples are unknown; restore it"
        )
    return data


def _predictions(model: Tapped, data: Data, split: Split) -> tuple[Tensor, Tensor]:
    """Logits (N, K) and labels (N,) of a split, on the device of the model."""
    logits = class_logits(model, "network", data, split, model.mean.device)
    return logits, hard_labels(split.labels).to(logits.device)


def _record(folder: Path, calibration: Calibration, metrics: dict[str, Any]) -> None:
    """Write the calibration into the header of the weights file, and into ``result.json``.

    ``result.json`` is first: it then has the digests of both weights files, the present one and the next, so that the
    folder is intact at every moment.
    """
    file, run_folder = folder / WEIGHTS, RunFolder(folder)
    with run_folder.lock():
        state, metadata = read_state(file)
        content = encode_weights(state, metadata | {"calibration": calibration.model_dump()}, str(file))
        present, following = (hashlib.sha256(data).hexdigest() for data in (read_file(file, largest=None), content))
        result = run_folder.result() or {}
        result |= {"calibration": calibration.model_dump() | {"test": metrics}}
        run_folder.write_result(result | {WEIGHTS_DIGEST: present, CALIBRATED_DIGEST: following})
        run_folder.write(file, content)
    add_loading_script(folder, replace=True)
