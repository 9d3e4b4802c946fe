"""The runs of a study, the dependencies between them, and the key that only equal runs share."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from tutelage.config import Config
from tutelage.files import as_path
from tutelage.methods import find
from tutelage.runs.code import code_of_method, code_of_network
from tutelage.studies import PLAIN, TEACHER
from tutelage.studies.study import Study, canonical

FIRST_FIELDS = frozenset(
    [
        "epochs",
        "batch_size",
        "optimizer",
        "lr",
        "momentum",
        "nesterov",
        "weight_decay",
        "schedule",
        "milestones",
        "gamma",
        "warmup",
        "clip",
        "device",
        "precision",
        "channels_last",
        "compile",
        "data",
        "image_size",
        "test",
        "skip_bad",
        "per_class",
        "imbalance",
        "noise",
        "validation",
        "augment",
        "views",
        "student",
        "pretrained",
        "teacher_cache",
        "teacher_cache_dtype",
        "method",
        "settings",
        "seed",
    ]
)
"""The fields of ``Config`` that are in the key of every run.

Other fields are in it only if they do not have their default value, so that keys equal those of versions without them.
"""


class Case(NamedTuple):
    """A condition and a pair of networks, which the rows of one table share."""

    data: str
    noise: str | None
    imbalance: str | None
    per_class: int | None
    teacher_labels: str
    teacher: str
    student: str


@dataclass(frozen=True)
class ReferenceTeacher:
    """A teacher that a student is compared with after training; the student is trained without it.

    Attributes:
        name: the key of its job, or the specification of a network that is already trained.
        job: the job that trains it; ``None`` for a network that is already trained.
        config: a configuration with it as its teacher.
    """

    name: str
    job: Job | None
    config: Config


@dataclass(frozen=True)
class Job:
    """One training run, which several planned runs may share.

    Attributes:
        key: the first sixteen hexadecimal digits of the hash of everything that its numbers depend on.
        name: the name of its folder.
        config: its configuration.
        needs: the job that trains its teacher, if any.
        references: the teachers to compare a student with that is trained without a teacher.
        task: the study's task, if the method names none and the data's targets are for another task.
        code: hashes of source files outside this package that its numbers depend on, its teacher's included.
    """

    key: str
    name: str
    config: Config
    needs: Job | None
    references: tuple[ReferenceTeacher, ...]
    task: str | None
    code: Mapping[str, str]

    @property
    def trains_teacher(self) -> bool:
        """Whether it trains a teacher, which other jobs wait for."""
        return not self.config.teacher and not self.references

    @property
    def before(self) -> tuple[Job, ...]:
        """The jobs that must end before this one is complete."""
        jobs = (self.needs, *(reference.job for reference in self.references))
        return tuple(job for job in jobs if job is not None)


@dataclass(frozen=True)
class PlannedRun:
    """A line of the results: a row in a case with a seed.

    ``reference`` is the name of the case's teacher for students that are trained without it.
    """

    case: Case
    row: str
    seed: int
    job: Job
    reference: str | None = None


def is_trained(teacher: str) -> bool:
    """Whether a teacher is a trained network (``MODEL@WEIGHTS`` or the folder of a run) and not one to train."""
    return "@" in teacher or as_path(teacher).is_dir()


class Planner:
    """Creates the jobs of a study.

    Args:
        study: the study.
        out: the folder of the study.
        fingerprints: the fingerprint of each data set's training split.
        teacher_free: the rows whose method never reads a teacher. Cases that differ only in the teacher share the runs
            of these rows.
        tasks: the name of the study's task for each data set whose targets are for another task.
    """

    def __init__(
        self,
        study: Study,
        out: Path,
        fingerprints: Mapping[str, str],
        teacher_free: Collection[str] = (),
        tasks: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.study, self.out, self.fingerprints, self.teacher_free = study, out, fingerprints, teacher_free
        self.tasks = tasks
        self._methods = {row: find(variant.method) for row, variant in study.methods.items()}
        self._teachers: dict[tuple[Case, int], Job] = {}
        self._code = {name: code_of_network(name) for name in {n for pair in study.all_pairs for n in pair}}

    @property
    def cases(self) -> Iterator[Case]:
        """Every condition with every pair."""
        study = self.study
        conditions = product(study.data, study.noise, study.imbalance, study.per_class, study.teacher_labels)
        for condition, pair in product(conditions, study.all_pairs):
            yield Case(*condition, *pair)

    def planned_runs(self, chosen: Mapping[tuple[Case, str], Mapping[str, Any]]) -> list[PlannedRun]:
        """Return all runs of the study, in the order of its tables.

        Args:
            chosen: settings selected by tuning, by case and row; they override the row's own.
        """
        lines = []
        for case in self.cases:
            if not is_trained(case.teacher):
                lines += [PlannedRun(case, TEACHER, seed, self.teacher(case, seed)) for seed in self.study.seeds]
            for row in self.study.methods:
                extra = chosen.get((case, row), {})
                lines += [self.line(case, row, seed, extra) for seed in self.study.seeds]
        return lines

    def line(self, case: Case, row: str, seed: int, extra: Mapping[str, Any]) -> PlannedRun:
        """Return the planned run of a student, with settings in addition to the row's own."""
        job = self.student(case, row, seed, extra)
        return PlannedRun(case, row, seed, job, self._reference(case, seed).name if job.references else None)

    def teacher(self, case: Case, seed: int) -> Job:
        """Return the job of the teacher of a case and seed, which all methods share."""
        if (case, seed) not in self._teachers:
            noise = case.noise if case.teacher_labels == "noisy" else None
            fields = {"seed": seed, "noise": noise, "student": case.teacher, "method": PLAIN, "init": None}
            self._teachers[case, seed] = self._job(case, TEACHER, fields, self._code[case.teacher])
        return self._teachers[case, seed]

    def student(self, case: Case, row: str, seed: int, extra: Mapping[str, Any]) -> Job:
        """Return the job of a student, with settings in addition to the row's own."""
        variant, method = self.study.methods[row], self._methods[row]
        settings = method.settings(**method.check({**variant.settings, **extra})).model_dump(mode="json")
        fields: dict[str, Any] = {"seed": seed, "noise": case.noise, "student": case.student}
        fields |= {"method": variant.method, "settings": settings}
        code = code_of_method(method) | self._code[case.student]
        # Unlike a number, another text or flag in the settings may make the method read a teacher.
        if row in self.teacher_free and not any(isinstance(value, str | bool) for value in extra.values()):
            return self._job(case, row, fields, code, references=self._all_references(case, seed))
        teacher = None if is_trained(case.teacher) else self.teacher(case, seed)
        return self._job(case, row, fields, code | self._code[case.teacher], teacher_and_spec=(teacher, case.teacher))

    def _all_references(self, case: Case, seed: int) -> tuple[ReferenceTeacher, ...]:
        """The reference teachers of all cases with the same student."""
        cases = [
            case._replace(teacher=teacher, teacher_labels=labels)
            for labels in self.study.teacher_labels
            for teacher, student in self.study.all_pairs
            if student == case.student
        ]
        references = [self._reference(case, seed) for case in cases]
        return tuple({reference.name: reference for reference in references}.values())

    def _reference(self, case: Case, seed: int) -> ReferenceTeacher:
        if is_trained(case.teacher):
            return ReferenceTeacher(case.teacher, None, config_of(self.study, teacher=(case.teacher,)))
        job = self.teacher(case, seed)
        return ReferenceTeacher(job.key, job, job.config.replace(teacher=(str(self._folder(job)),)))

    def _folder(self, job: Job) -> Path:
        return self.out / "runs" / job.name

    def _job(
        self,
        case: Case,
        row: str,
        fields: Mapping[str, Any],
        code: Mapping[str, str],
        *,
        teacher_and_spec: tuple[Job | None, str] | None = None,
        references: tuple[ReferenceTeacher, ...] = (),
    ) -> Job:
        config = config_of(self.study, data=case.data, imbalance=case.imbalance, per_class=case.per_class, **fields)
        if teacher_and_spec is None:
            config = config.replace(
                teacher_mean=(), teacher_std=(), teacher_size=None
            )  # these apply to trained teachers only
        identity = {
            name: value
            for name, value in config.model_dump(mode="json", exclude={"teacher", "workers", "cache"}).items()
            if name in FIRST_FIELDS or getattr(config, name) != Config.model_fields[name].default
        }
        # Numbers depend on the precision of the cache, not on its folder. Earlier versions hashed these names.
        del identity["teacher_cache"], identity["teacher_cache_dtype"]
        identity["answers"] = None
        identity["answers_as"] = config.teacher_cache_dtype if config.teacher_cache else "float32"
        teacher = None
        if references:
            identity["teacher"] = None  # so that the key differs from that of a teacher with the same network
        if teacher_and_spec:
            teacher, spec = teacher_and_spec
            identity["teacher"] = teacher.key if teacher else spec
            config = config.replace(teacher=(str(self._folder(teacher)) if teacher else spec,))
        if code:  # absent for the package's own methods and networks, whose keys must not change
            identity["code"] = code
        identity["training data"] = self.fingerprints[case.data]
        method = self._methods[PLAIN if row == TEACHER else row]
        task = self.tasks.get(case.data) if method.task is None else None
        if task is not None:
            identity["task"] = task
        key = hashlib.sha256(canonical(identity).encode()).hexdigest()[:16]
        slug = re.sub(r"[^\w.]+", "-", row).strip("-").lower() or "row"
        return Job(key, f"{slug[:40]}-seed{config.seed}-{key}", config, teacher, references, task, code)


def config_of(study: Study, **fields: Any) -> Config:
    """Return a run's configuration, without data loader processes: the study's workers are processes already."""
    return Config(**{"workers": 0, **study.train, **fields})
