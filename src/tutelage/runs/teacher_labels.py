"""Warnings about a teacher that was trained with other labels than its student."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from tutelage.config import Config, read_config
from tutelage.data.conditions import parse_noise
from tutelage.data.conditions.condition import Relabelling
from tutelage.errors import TutelageError, TutelageWarning
from tutelage.runs.folder import CONFIG
from tutelage.runs.locate import run_folder

LABEL_FIELDS = ("data", "noise", "imbalance", "per_class", "seed")
"""The fields that determine the training samples of a run and their labels."""


def label_differences(teacher: str, config: Config) -> str | None:
    """Compare the training labels of a teacher's run with those of its student.

    Only runs on the same data are compared. With label noise, any other condition gives other labels: another noise,
    another seed of random noise, another selection of samples. Without noise all labels are correct, and a student can
    only have fewer samples: because of an imbalance that its teacher does not have, or of a smaller ``per_class`` (for
    one seed, a larger subset contains the smaller one).

    Returns:
        A warning if the teacher may have seen more correct labels; ``None`` if not, or if the teacher has no record.
    """
    folder = run_folder(teacher)
    if folder is None:
        return None
    try:
        fields = read_config(folder / CONFIG)
        other = Config(**{name: fields[name] for name in LABEL_FIELDS if name in fields})
    except TutelageError:  # a damaged record must not stop the run
        return None
    if _resolved(other.data) != _resolved(config.data):
        return None
    noisy = any(isinstance(noise, Relabelling) for noise in _noises(config))
    differing = []
    if noisy and _noises(other) != _noises(config):
        differing += ["noise"] if other.noise != config.noise else ["seed"]
    if other.imbalance != config.imbalance and (noisy or config.imbalance is not None):
        differing.append("imbalance")
    if other.per_class != config.per_class and (noisy or _is_larger(other.per_class, config.per_class)):
        differing.append("per_class")
    if other.seed != config.seed and config.per_class is not None:
        differing.append("seed")
    if not differing:
        return None
    differences = " and ".join(
        f"{name} {_value(other, name)} (here {_value(config, name)})" for name in dict.fromkeys(differing)
    )
    return (
        f"the teacher {teacher} was trained on the same data with {differences}: it may have seen labels that this "
        "student does not see; for a fair comparison train it with the student's noise, imbalance, per_class and seed"
    )


def warn_of_label_differences(config: Config) -> None:
    """Warn of each teacher that may have seen more correct labels than the student; see ``label_differences``."""
    for teacher in config.teacher:
        if text := label_differences(teacher, config):
            warnings.warn(text, TutelageWarning, stacklevel=3)


def _noises(config: Config) -> tuple[Any, ...]:
    """The parsed noise: equal for two texts that give the same labels."""
    try:
        return parse_noise(config.noise, config.seed) if config.noise is not None else ()
    except TutelageError:  # a file that no longer exists
        return (config.noise, config.seed)


def _is_larger(per_class: int | None, limit: int | None) -> bool:
    return limit is not None and (per_class is None or per_class > limit)


def _value(config: Config, name: str) -> object:
    value = getattr(config, name)
    return "none" if value is None else value


def _resolved(data: str) -> tuple[str, Path]:
    """The name of a data set, equal for two spellings of one path."""
    scheme, _, path = data.partition(":")
    return scheme, Path(path).resolve()
