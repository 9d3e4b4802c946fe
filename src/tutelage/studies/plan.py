"""From a study to its runs: which there are, what each depends on, and the name that only equal ones share."""

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
class ReferenceTeacher:
    """A teacher that a student is compared with after its training, without having learned from it.

    Attributes:
        name: its job's key, or what the study calls a network that is trained already.
        job: the job that trains it, if one does.
        config: a configuration that opens it as its teacher.
    """

    name: str
    job: Job | None
    config: Config


@dataclass(frozen=True)
class Job:
    """A run that somebody asked for.

    Attributes:
        key: sixteen hexadecimal digits of everything that its numbers depend on.
        name: its folder's.
        config: what it is told.
        needs: the job that trains its teacher, if one does.
        compared: the teachers to compare it with, for a student that none of them teaches.
        task: what its method, which names no task, trains for, where that is not what the data's targets are for.
        code: hashes of source files outside this package that its numbers depend on, those of its teacher included.
    """

    key: str
    name: str
    config: Config
    needs: Job | None
    compared: tuple[ReferenceTeacher, ...]
    task: str | None
    code: Mapping[str, str]

    @property
    def trains_teacher(self) -> bool:
        """Whether it is a teacher's run, which others wait for."""
        return not self.config.teacher and not self.compared

    @property
    def before(self) -> tuple[Job, ...]:
        """The jobs that must be over before this one is done."""
        others = (self.needs, *(other.job for other in self.compared))
        return tuple(job for job in others if job is not None)


@dataclass(frozen=True)
class Asked:
    """A line of the results: a row, in a case, with a seed; ``beside`` names the compared teacher of its case."""

    case: Case
    row: str
    seed: int
    job: Job
    beside: str | None = None


def is_trained(teacher: str) -> bool:
    """Whether a teacher is named as a trained network, ``MODEL@WEIGHTS`` or a run's folder, and not as one to train."""
    return "@" in teacher or as_path(teacher).is_dir()


class Planner:
    """Makes the jobs of a study kept in a folder.

    Args:
        study: what is asked.
        out: its folder.
        fingerprints: of each data set's training part.
        teacher_free: the rows whose method never reads a teacher: their runs do not depend on one, and all cases that
            differ by the teacher alone share them.
        tasks: the study's task by the data sets whose targets are for another one.
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
                lines += [self.line(case, row, seed, extra) for seed in self.study.seeds]
        return lines

    def line(self, case: Case, row: str, seed: int, extra: Mapping[str, Any]) -> Asked:
        """A student of a row, with settings beside the row's own."""
        job = self.student(case, row, seed, extra)
        return Asked(case, row, seed, job, self._compared(case, seed).name if job.compared else None)

    def teacher(self, case: Case, seed: int) -> Job:
        """The teacher of a case and seed, which all methods share."""
        if (case, seed) not in self._teachers:
            noise = case.noise if case.teacher_labels == "noisy" else None
            told = {"seed": seed, "noise": noise, "student": case.teacher, "method": PLAIN}
            self._teachers[case, seed] = self._job(case, TEACHER, told, self._code[case.teacher])
        return self._teachers[case, seed]

    def student(self, case: Case, row: str, seed: int, extra: Mapping[str, Any]) -> Job:
        """The run of a student of a row, with settings beside the row's own."""
        variant, method = self.study.methods[row], self._methods[row]
        settings = method.settings(**method.check({**variant.settings, **extra})).model_dump(mode="json")
        told: dict[str, Any] = {"seed": seed, "noise": case.noise, "student": case.student}
        told |= {"method": variant.method, "settings": settings}
        code = code_of_method(method) | self._code[case.student]
        # Another choice of a setting, unlike another number, may make the method read a teacher after all.
        if row in self.teacher_free and not any(isinstance(value, str | bool) for value in extra.values()):
            return self._job(case, row, told, code, compared=self._all_compared(case, seed))
        teacher = None if is_trained(case.teacher) else self.teacher(case, seed)
        return self._job(case, row, told, code | self._code[case.teacher], taught_by=(teacher, case.teacher))

    def _all_compared(self, case: Case, seed: int) -> tuple[ReferenceTeacher, ...]:
        """The teachers of all cases in which the student of this one is the same."""
        cases = [
            case._replace(teacher=teacher, teacher_labels=labels)
            for labels in self.study.teacher_labels
            for teacher, student in self.study.all_pairs
            if student == case.student
        ]
        found = [self._compared(each, seed) for each in cases]
        return tuple({one.name: one for one in found}.values())

    def _compared(self, case: Case, seed: int) -> ReferenceTeacher:
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
        told: Mapping[str, Any],
        code: Mapping[str, str],
        *,
        taught_by: tuple[Job | None, str] | None = None,
        compared: tuple[ReferenceTeacher, ...] = (),
    ) -> Job:
        config = config_of(self.study, data=case.data, imbalance=case.imbalance, per_class=case.per_class, **told)
        if taught_by is None:
            config = config.replace(teacher_mean=(), teacher_std=())  # of teachers that are trained already
        says = config.model_dump(mode="json", exclude={"teacher", "workers"})
        if not config.teacher_mean:  # absent rather than empty, as in studies from before these fields
            del says["teacher_mean"], says["teacher_std"]
        # The folder of the cache changes nothing, its precision does. The names are those of earlier versions' keys.
        del says["teacher_cache"], says["teacher_cache_dtype"]
        says["answers"] = None
        says["answers_as"] = config.teacher_cache_dtype if config.teacher_cache else "float32"
        teacher = None
        if compared:
            says["teacher"] = None  # which a teacher's own run, of the same network perhaps, does not say
        if taught_by:
            teacher, spec = taught_by
            says["teacher"] = teacher.key if teacher else spec
            config = config.replace(teacher=(str(self._folder(teacher)) if teacher else spec,))
        if code:  # only that of others, so that a run of the package's own methods and networks keeps its key
            says["code"] = code
        says["training data"] = self.fingerprints[case.data]
        method = self._methods[PLAIN if row == TEACHER else row]
        task = self.tasks.get(case.data) if method.task is None else None
        if task is not None:
            says["task"] = task
        key = hashlib.sha256(canonical(says).encode()).hexdigest()[:16]
        slug = re.sub(r"[^\w.]+", "-", row).strip("-").lower() or "row"
        return Job(key, f"{slug[:40]}-seed{config.seed}-{key}", config, teacher, compared, task, code)


def config_of(study: Study, **fields: Any) -> Config:
    """What a run is told. Its own process reads files: the study's workers are processes already."""
    return Config(**{"workers": 0, **study.train, **fields})
