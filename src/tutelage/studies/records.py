"""The folder of a study: plain files that anything can read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tutelage.config import ExtraEvaluation
from tutelage.errors import TutelageError, one_line
from tutelage.files import LockedFolder, read_file, remove_abandoned
from tutelage.parsing import parse_json
from tutelage.runs.commands import as_command
from tutelage.runs.folder import METRICS, RESULT
from tutelage.studies import TEACHER
from tutelage.studies.metrics import curves_of, task_metrics
from tutelage.studies.plan import Asked, Job
from tutelage.studies.reading import AXIS_WORDS, CONDITION, DEFAULT_TASK, RECORDS, STUDY, TRIALS, is_number
from tutelage.studies.study import Study
from tutelage.tasks import Task
from tutelage.text import value_text

EXTRA, BESIDE, FAILURES = "extra.json", "beside.json", "failures"

TRAIN = ("memorised", "wrong_labels")
COST = ("parameters", "flops", "latency_ms")
MORE = ("corruption_accuracy", "corruptions", "pgd", "auac", "zero_gradient_share", "ood_auroc")

_TABLES = ("per_class_accuracy", "reliability", "risk_coverage", "corruptions", "pgd")
_REST = ("noise_rate", "trained_noise_rate", "seconds", "forward_passes", "curve")


class Store:
    """Reads and writes what a study keeps.

    ``study.json`` its declaration; ``results.jsonl`` a line a run that it asks for; ``trials.jsonl`` what tuning tried;
    ``runs/`` their folders; ``failures/`` the errors of those that failed.
    """

    def __init__(self, folder: LockedFolder, study: Study, task: Task) -> None:
        self.path, self.study, self.evaluate, self.task = (
            folder.path,
            study.replace(task=task.name),
            study.evaluate,
            task,
        )
        self._test = (*task_metrics(task), *curves_of(task))
        self._nothing = dict.fromkeys((*self._test, *TRAIN, *COST, *MORE, *_REST))
        self._write, self.check = folder.write, folder.check
        self._records: dict[str, dict[str, Any]] = {}

    def begin(self) -> None:
        """Write the declaration, and remove what a killed study left half written.

        Raises:
            TutelageError: nothing can be written, or ``study.json`` is one that the user wrote.
        """
        file = self.path / STUDY
        ran = any((self.path / name).exists() for name in (RECORDS, "runs"))
        if file.exists() and not ran and not _as_written(file):
            raise TutelageError(f"{file} is of no study that was run here and would be replaced; choose another folder")
        remove_abandoned(self.path / FAILURES, lambda name: name.endswith(".json"))
        self._write(file, _text(self.study.as_json()))

    def is_declared(self) -> bool:
        """Whether the folder's ``study.json`` is this study's."""
        declarations = [self.study.as_json()]
        if self.task.name == DEFAULT_TASK:
            declarations.append({name: value for name, value in declarations[0].items() if name != "task"})
        try:
            return read_file(self.path / STUDY) in map(_text, declarations)
        except OSError:
            return False

    def folder(self, job: Job) -> Path:
        """Where a job's run is kept."""
        return self.path / "runs" / job.name

    def is_complete(self, job: Job) -> bool:
        """Whether nothing is left to do: it is done, and compared with all teachers that it is to be compared with."""
        beside = _read(self.folder(job) / BESIDE) or {}
        return self.is_done(job) and all(other.name in beside for other in job.compared)

    def is_done(self, job: Job) -> bool:
        """Whether its run is finished and its extra evaluation is complete."""
        if not _read(self.folder(job) / RESULT):
            return False
        asked = self.evaluate.model_dump(mode="json")
        return self.evaluate == ExtraEvaluation() or (_read(self.folder(job) / EXTRA) or {}).get("asked") == asked

    def label(self, line: Asked) -> str:
        """A run in words: its row and seed, and what it depends on of the conditions and networks that vary."""
        case, study = line.case._asdict(), self.study
        axes = [axis for axis in CONDITION if len(getattr(study, axis)) > 1]
        words = [AXIS_WORDS[axis](case[axis]) for axis in axes if axis != "teacher_labels" or line.beside is None]
        if len(study.all_pairs) > 1:
            teacher = [] if line.beside is not None else [line.case.teacher]
            student = [] if line.row == TEACHER else [line.case.student]
            words.append(" → ".join(teacher + student))
        return ", ".join([line.row, *words, f"seed {line.seed}"])

    def epochs(self, job: Job, since: float) -> int:
        """How many epochs a run has written down since a time; 0 for one that has not begun."""
        file = self.folder(job) / METRICS
        with suppress(OSError):
            if file.stat().st_mtime >= since:
                return read_file(file).count(b"\n")
        return 0

    def keep_failure(self, job: Job, error: str, trace: str) -> None:
        """Write down why a run failed; attempts of one study follow each other in the file."""
        before = (_read(self._failure(job.name)) or {}).get("attempts", [])
        told = {"error": " ".join(error.split()), "traceback": trace}
        text = json.dumps({"run": job.name, "attempts": [*before, told]}, indent=1)
        self._write(self._failure(job.name), text.encode())

    def forget_failure(self, name: str) -> None:
        """A run that failed before is done now, or is done by another one."""
        self._failure(name).unlink(missing_ok=True)

    def _failure(self, name: str) -> Path:
        return self.path / FAILURES / f"{name}.json"

    def write(self, asked: Sequence[Asked], trials: Sequence[Mapping[str, Any]]) -> None:
        """Write the results as they are now, and the trials."""
        self._write_lines(self.path / RECORDS, [self.record(line) for line in asked])
        if trials:
            self._write_lines(self.path / TRIALS, trials)
        else:  # those of an earlier study with a budget are not this one's
            (self.path / TRIALS).unlink(missing_ok=True)

    def _write_lines(self, file: Path, records: Sequence[Mapping[str, Any]]) -> None:
        try:
            lines = [json.dumps(record, allow_nan=False) for record in records]
        except ValueError as error:
            raise TutelageError(f"cannot write {file}: a number in it is not finite") from error
        self._write(file, ("\n".join(lines) + "\n").encode())

    def record(self, line: Asked) -> dict[str, Any]:
        """Everything about a run as one flat record; what was not measured is ``None``."""
        config = line.job.config
        told = {
            "key": line.job.key,
            "folder": f"runs/{line.job.name}",
            **line.case._asdict(),
            "method": line.row,
            "function": config.method,
            "settings": config.settings,
            "seed": line.seed,
            "command": as_command(config),
            "code": dict(line.job.code),
        }
        if line.job.key not in self._records:
            measured = self._measured(line.job)
            if measured["status"] != "done":
                return told | measured
            self._records[line.job.key] = measured
        return told | self._records[line.job.key] | self._beside(line)

    def _beside(self, line: Asked) -> dict[str, Any]:
        """What a student that no teacher taught gives beside the teacher of its case."""
        if line.beside is None:
            return {}
        found = (_read(self.folder(line.job) / BESIDE) or {}).get(line.beside)
        return {name: found[name] for name in self._test if name in found} if isinstance(found, dict) else {}

    def _measured(self, job: Job) -> dict[str, Any]:
        if self.is_done(job):
            try:
                return {"status": "done", "error": None, **self._numbers(self.folder(job))}
            except ValueError as error:
                why = f"{one_line(error)}; remove {self.folder(job)} and run the study again"
                return {"status": "missing", "error": why, **self._nothing}
        failure = _read(self._failure(job.name))
        if failure is None:
            return {"status": "missing", "error": None, **self._nothing}
        return {"status": "failed", "error": failure["attempts"][-1]["error"], **self._nothing}

    def _numbers(self, folder: Path) -> dict[str, Any]:
        """What a finished run measured.

        Raises:
            ValueError: a file of it does not hold what a run writes there.
        """
        result = _table(_read(folder / RESULT), RESULT)
        extra = _table(_read(folder / EXTRA), EXTRA) if self.evaluate != ExtraEvaluation() else {}
        test, train, cost = (_table(result.get(name, {}), f"{RESULT}, {name}") for name in ("test", "train", "cost"))
        if self.task.main_metric not in test:
            raise ValueError(f"{RESULT}, test has no {self.task.main_metric}")
        parts = ((test, self._test), (train, TRAIN), (cost, COST), (extra, MORE))
        data = _table(result.get("data", {}), f"{RESULT}, data")
        conditions, rates = data.get("record", []), _table(data.get("noise_rate", {}), f"{RESULT}, data, noise_rate")
        if not isinstance(conditions, list):
            raise ValueError(f"{RESULT}, data, record is {value_text(conditions)} and no list")
        noise = [_table(each, f"{RESULT}, data, record").get("realised_rate") for each in conditions]
        noise = [rate for rate in noise if rate is not None]
        passes = _table(result.get("forward_passes") or {}, f"{RESULT}, forward_passes")
        counts = [_number(count, "forward_passes") or 0 for count in passes.values()]
        numbers = {
            **{name: part.get(name) for part, names in parts for name in names},
            "noise_rate": noise[0] if noise else None,  # of the whole training part
            "trained_noise_rate": rates.get("train") if noise else None,  # without what is held out
            "seconds": result.get("seconds"),
            "forward_passes": sum(counts) if counts else None,
        }
        for name, value in numbers.items():
            if name in _TABLES:
                for entry in _table(value if value is not None else {}, name).values():
                    for each in entry if isinstance(entry, list) else [entry]:
                        _number(each, name)
            else:
                _number(value, name)
        return {**numbers, "curve": _curve(folder / METRICS, self.task.main_metric)}


def _curve(file: Path, main: str) -> dict[str, Any]:
    """The first learner's numbers by epoch, its fits one after another; none where there is no such file."""
    learners = []
    for number, line in enumerate(_content(file).splitlines() if file.exists() else (), 1):
        place = f"{file.name}, line {number}"
        try:
            epoch = _table(parse_json(line), place)
        except ValueError as error:
            raise ValueError(f"{place}: {one_line(error)}") from error
        named = _table(epoch.get("learners"), f"{place}, learners")
        if not named:
            raise ValueError(f"{place}, learners is empty")
        learners.append(_table(next(iter(named.values())), f"{place}, learners"))
        for name, value in learners[-1].items():
            _number(value, f"{place}, {name}")
    names = dict.fromkeys(name for learner in learners for name in learner)
    mains = (f"train_{main}", f"validation_{main}")
    return {
        "epoch": list(range(1, len(learners) + 1)),
        **{name: [learner.get(name) for learner in learners] for name in mains},
        "loss": {name: [learner.get(name) for learner in learners] for name in names if name not in mains},
    }


def _text(declaration: Mapping[str, Any]) -> bytes:
    return (json.dumps(declaration, indent=2) + "\n").encode()


def _as_written(file: Path) -> bool:
    """Whether a ``study.json`` has the form in which studies write it, and no user."""
    declaration = _read(file) or {}
    return "pairs" in declaration and read_file(file) == _text(declaration)


def _table(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {value_text(value)} and no table")
    return value


def _number(value: Any, name: str) -> Any:
    if not is_number(value):
        raise ValueError(f"{name} is {value_text(value)} and no number")
    return value


def _content(file: Path) -> bytes:
    try:
        return read_file(file)
    except OSError as error:
        raise ValueError(f"{file.name} cannot be read: {error.strerror or one_line(error)}") from error


def _read(file: Path) -> dict[str, Any] | None:
    """What a file holds; ``None`` if it is not there or not whole, for then its run has to be done again."""
    try:
        read = parse_json(_content(file))
    except ValueError:
        return None
    return read if isinstance(read, dict) else None
