"""From a study to its runs: which there are, what each depends on, and the name that only equal ones share."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from tutelage.config import Config
from tutelage.data import open_data
from tutelage.data.data import check_every_class_taught
from tutelage.errors import TutelageError, TutelageWarning
from tutelage.files import as_path
from tutelage.methods import find
from tutelage.models.load import make_model
from tutelage.runs.execute import load_data
from tutelage.runs.models import open_model
from tutelage.runs.teachers import other_labels
from tutelage.studies import PLAIN, TEACHER
from tutelage.studies.study import Study, canonical
from tutelage.trust import Trust, check_trusted


class Case(NamedTuple):
    """A condition and a pair: what rows of one table share."""

    data: str
    noise: str | None
    imbalance: str | None
    per_class: int | None
    teacher_labels: str
    teacher: str
    student: str


@dataclass(frozen=True)
class Job:
    """A run that somebody asked for.

    Attributes:
        key: sixteen hexadecimal digits of everything that its numbers depend on.
        name: its folder's.
        config: what it is told.
        needs: the job that trains its teacher, if one does.
    """

    key: str
    name: str
    config: Config
    needs: Job | None


@dataclass(frozen=True)
class Asked:
    """A line of the results: a row, in a case, with a seed."""

    case: Case
    row: str
    seed: int
    job: Job


def inspect(study: Study, trust: Trust | None = None) -> dict[str, str]:
    """Open and build everything that the study names, before anything is trained.

    Args:
        study: what to do.
        trust: whose code may be imported (``check_trusted``); that which the study names, unless given.

    Returns:
        The fingerprint of each data set.

    Raises:
        TutelageError: the first thing that cannot work.
    """
    trust = study.code if trust is None else trust
    for way in study.methods.values():
        check_trusted(way.method, trust, "the study")
        method = find(way.method)
        method.check(way.settings)
        if method.trains != "classifier":
            raise TutelageError(
                f"a study compares classifiers, and {way.method} trains {method.trains}s; "
                f"run it by itself: tutelage distill --method {way.method}"
            )
    if study.evaluate.ood is not None:
        open_data(study.evaluate.ood)
    _warn_of_other_labels(study)
    fingerprints: dict[str, str] = {}
    for spec in study.data:
        plain = load_data(_config(study, data=spec))
        fingerprints[spec] = plain.fingerprint
        for network in {name for pair in study.all_pairs for name in pair}:
            if is_trained(network):
                open_model(network, plain, trust)
            else:
                make_model(
                    network,
                    num_classes=plain.num_classes,
                    image_shape=plain.image_shape,
                    trust=trust,
                    named_in="the study",
                )
        for noise, imbalance, few in product(study.noise, study.imbalance, study.per_class):
            if (noise, imbalance, few) != (None, None, None):
                told = _config(study, data=spec, noise=noise, imbalance=imbalance, per_class=few)
                check_every_class_taught(load_data(told))
    return fingerprints


def _warn_of_other_labels(study: Study) -> None:
    """Warn once where a teacher from elsewhere may have seen labels that a student of the study is denied."""
    trained = {teacher for teacher, _ in study.all_pairs if is_trained(teacher)}
    conditions = product(study.data, study.noise, study.imbalance, study.per_class, study.seeds, sorted(trained))
    for data, noise, imbalance, few, seed, teacher in conditions:
        config = _config(study, data=data, noise=noise, imbalance=imbalance, per_class=few, seed=seed)
        if text := other_labels(teacher, config):
            warnings.warn(text, TutelageWarning, stacklevel=3)
            return


def is_trained(teacher: str) -> bool:
    """Whether a teacher is named as a trained network, ``MODEL@WEIGHTS`` or a run's folder, and not as one to train."""
    return "@" in teacher or as_path(teacher).is_dir()


class Planner:
    """Makes the jobs of a study kept in a folder."""

    def __init__(self, study: Study, out: Path, fingerprints: Mapping[str, str]) -> None:
        self.study, self.out, self.fingerprints = study, out, fingerprints
        self._methods = {row: find(way.method) for row, way in study.methods.items()}
        self._teachers: dict[tuple[Case, int], Job] = {}

    @property
    def cases(self) -> Iterator[Case]:
        """Every condition with every pair."""
        study = self.study
        conditions = product(study.data, study.noise, study.imbalance, study.per_class, study.teacher_labels)
        for condition, pair in product(conditions, study.all_pairs):
            yield Case(*condition, *pair)

    def asked(self, chosen: Mapping[tuple[Case, str], Mapping[str, Any]]) -> list[Asked]:
        """All runs of the study, in the order of its tables.

        Args:
            chosen: settings found by tuning, by case and row; they come on top of the row's own.
        """
        lines = []
        for case in self.cases:
            if not is_trained(case.teacher):
                lines += [Asked(case, TEACHER, seed, self.teacher(case, seed)) for seed in self.study.seeds]
            for row in self.study.methods:
                extra = chosen.get((case, row), {})
                lines += [Asked(case, row, seed, self.student(case, row, seed, extra)) for seed in self.study.seeds]
        return lines

    def teacher(self, case: Case, seed: int) -> Job:
        """The teacher of a case and seed, which all methods share."""
        if (case, seed) not in self._teachers:
            noise = case.noise if case.teacher_labels == "noisy" else None
            job = self._job(case, TEACHER, None, seed=seed, noise=noise, student=case.teacher, method=PLAIN)
            self._teachers[case, seed] = job
        return self._teachers[case, seed]

    def student(self, case: Case, row: str, seed: int, extra: Mapping[str, Any]) -> Job:
        """A student of a row, with settings beside the row's own."""
        way, method = self.study.methods[row], self._methods[row]
        settings = method.settings(**method.check({**way.settings, **extra})).model_dump(mode="json")
        teacher = None if is_trained(case.teacher) else self.teacher(case, seed)
        told = {"seed": seed, "noise": case.noise, "student": case.student, "method": way.method, "settings": settings}
        return self._job(case, row, teacher, **told)

    def _job(self, case: Case, row: str, teacher: Job | None, **told: Any) -> Job:
        config = _config(self.study, data=case.data, imbalance=case.imbalance, per_class=case.per_class, **told)
        says = config.model_dump(mode="json", exclude={"teacher", "workers"})
        if not config.teacher_mean:  # absent rather than empty, as in studies from before these fields
            del says["teacher_mean"], says["teacher_std"]
        says["answers"] = None  # where they are kept changes nothing; rounded ones do
        says["answers_as"] = config.answers_as if config.answers else "float32"
        if row != TEACHER:
            says["teacher"] = teacher.key if teacher else case.teacher
            config = config.but(teacher=(str(self.out / "runs" / teacher.name) if teacher else case.teacher,))
        says["training data"] = self.fingerprints[case.data]
        key = hashlib.sha256(canonical(says).encode()).hexdigest()[:16]
        slug = re.sub(r"[^\w.]+", "-", row).strip("-").lower() or "row"
        return Job(key, f"{slug[:40]}-seed{config.seed}-{key}", config, teacher)


def _config(study: Study, **fields: Any) -> Config:
    """What a run is told. Files are read by the run's own process: the study's workers are processes already."""
    return Config(**{"workers": 0, **study.train, **fields})
