"""The files in the folder of a study."""

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
from tutelage.studies.plan import Job, PlannedRun
from tutelage.studies.reading import AXIS_WORDS, CONDITION, DEFAULT_TASK, RECORDS, STUDY, TRIALS, is_number
from tutelage.studies.study import Study
from tutelage.tasks import Task
from tutelage.text import value_text

EXTRA, TEACHER_COMPARISONS, FAILURES = "extra.json", "teacher_comparisons.json", "failures"

TRAIN = ("memorised", "wrong_labels")
COST = ("parameters", "flops", "latency_ms")
EXTRA_METRICS = (
    "corruption_accuracy",
    "corruptions",
    "pgd",
    "auac",
    "zero_gradient_share",
    "attacks",
    "robust_accuracy",
    "attack_curves",
    "ood_auroc",
)

_TABLES = ("per_class_accuracy", "reliability", "risk_coverage", "corruptions", "pgd", "attacks", "attack_curves")
_OTHER = ("noise_rate", "trained_noise_rate", "seconds", "forward_passes", "curve")


class Store:
    """Reads and writes the folder of a study.

    ``study.json`` holds the declaration, ``results.jsonl`` one line per planned run, ``trials.jsonl`` the trials of
    tuning, ``runs/`` the folders of runs, and ``failures/`` the errors of failed runs.
    """

    def __init__(self, folder: LockedFolder, study: Study, task: Task) -> None:
        self.path, self.study, self.evaluate, self.task = (
            folder.path,
            study.replace(task=task.name),
            study.evaluate,
            task,
        )
        self._test = (*task_metrics(task), *curves_of(task))
        self._nothing = dict.fromkeys((*self._test, *TRAIN, *COST, *EXTRA_METRICS, *_OTHER))
        self._write, self.check = folder.write, folder.check
        self._records: dict[str, dict[str, Any]] = {}

    def begin(self) -> None:
        """Write the declaration, and remove partly written files of a killed study.

        Raises:
            TutelageError: the folder is not writable, or its ``study.json`` was not written by a study.
        """
        file = self.path / STUDY
        ran = any((self.path / name).exists() for name in (RECORDS, "runs"))
        if file.exists() and not ran and not _as_written(file):
            raise TutelageError(
                f"{file} is not of a study that was run here and would be replaced; choose another folder"
            )
        remove_abandoned(self.path / FAILURES, lambda name: name.endswith(".json"))
        self._write(file, _text(self.study.as_json()))

    def is_declared(self) -> bool:
        """Whether the folder's ``study.json`` is this study's."""
        declared = {"task": DEFAULT_TASK, **(_read(self.path / STUDY) or {})}
        evaluate = _requested(declared.get("evaluate"))  # of an earlier version, it may lack fields
        return {**declared, "evaluate": evaluate} == {**self.study.as_json(), "evaluate": self.evaluate}

    def folder(self, job: Job) -> Path:
        """Return the folder of a job's run."""
        return self.path / "runs" / job.name

    def is_complete(self, job: Job) -> bool:
        """Whether the run is done and compared with all its reference teachers."""
        comparisons = _read(self.folder(job) / TEACHER_COMPARISONS) or {}
        return self.is_done(job) and all(teacher.name in comparisons for teacher in job.references)

    def is_done(self, job: Job) -> bool:
        """Whether its run is finished and its extra evaluation is complete."""
        if not _read(self.folder(job) / RESULT):
            return False
        if self.evaluate == ExtraEvaluation():
            return True
        extra = _read(self.folder(job) / EXTRA) or {}
        return _requested(extra.get("requested")) == self.evaluate

    def label(self, line: PlannedRun) -> str:
        """Describe a run: its row and seed, and the conditions and networks it depends on that vary in the study."""
        case, study = line.case._asdict(), self.study
        axes = [axis for axis in CONDITION if len(getattr(study, axis)) > 1]
        words = [AXIS_WORDS[axis](case[axis]) for axis in axes if axis != "teacher_labels" or line.reference is None]
        if len(study.all_pairs) > 1:
            teacher = [] if line.reference is not None else [line.case.teacher]
            student = [] if line.row == TEACHER else [line.case.student]
            words.append(" → ".join(teacher + student))
        return ", ".join([line.row, *words, f"seed {line.seed}"])

    def epochs(self, job: Job, since: float) -> int:
        """Return the number of recorded epochs of a run; 0 if it recorded none since a time."""
        file = self.folder(job) / METRICS
        with suppress(OSError):
            if file.stat().st_mtime >= since:
                return read_file(file).count(b"\n")
        return 0

    def keep_failure(self, job: Job, error: str, trace: str) -> None:
        """Record a failure after those of earlier attempts."""
        earlier = (_read(self._failure(job.name)) or {}).get("attempts", [])
        attempt = {"error": " ".join(error.split()), "traceback": trace}
        text = json.dumps({"run": job.name, "attempts": [*earlier, attempt]}, indent=1)
        self._write(self._failure(job.name), text.encode())

    def forget_failure(self, name: str) -> None:
        """Remove the recorded failure of a run that is now done or replaced by another run."""
        self._failure(name).unlink(missing_ok=True)

    def _failure(self, name: str) -> Path:
        return self.path / FAILURES / f"{name}.json"

    def write(self, runs: Sequence[PlannedRun], trials: Sequence[Mapping[str, Any]]) -> None:
        """Write the current results and the trials."""
        self._write_lines(self.path / RECORDS, [self.record(line) for line in runs])
        if trials:
            self._write_lines(self.path / TRIALS, trials)
        else:  # an earlier study with a budget wrote them
            (self.path / TRIALS).unlink(missing_ok=True)

    def _write_lines(self, file: Path, records: Sequence[Mapping[str, Any]]) -> None:
        try:
            lines = [json.dumps(record, allow_nan=False) for record in records]
        except ValueError as error:
            raise TutelageError(f"cannot write {file}: a number in it is not finite") from error
        self._write(file, ("\n".join(lines) + "\n").encode())

    def record(self, line: PlannedRun) -> dict[str, Any]:
        """Return the flat record of a run; metrics that were not measured are ``None``."""
        config = line.job.config
        declared = {
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
                return declared | measured
            self._records[line.job.key] = measured
        return declared | self._records[line.job.key] | self._comparison(line)

    def _comparison(self, line: PlannedRun) -> dict[str, Any]:
        """Return the metrics of a student trained without a teacher that compare it with the teacher of its case."""
        if line.reference is None:
            return {}
        measured = (_read(self.folder(line.job) / TEACHER_COMPARISONS) or {}).get(line.reference)
        if not isinstance(measured, dict):
            return {}
        return {name: measured[name] for name in self._test if name in measured}

    def _measured(self, job: Job) -> dict[str, Any]:
        if self.is_done(job):
            try:
                return {"status": "done", "error": None, **self._numbers(self.folder(job))}
            except ValueError as error:
                reason = f"{one_line(error)}; remove {self.folder(job)} and run the study again"
                return {"status": "missing", "error": reason, **self._nothing}
        failure = _read(self._failure(job.name))
        if failure is None:
            return {"status": "missing", "error": None, **self._nothing}
        return {"status": "failed", "error": failure["attempts"][-1]["error"], **self._nothing}

    def _numbers(self, folder: Path) -> dict[str, Any]:
        """Return the metrics of a finished run.

        Raises:
            ValueError: one of its files is damaged.
        """
        result = _table(_read(folder / RESULT), RESULT)
        extra = _table(_read(folder / EXTRA), EXTRA) if self.evaluate != ExtraEvaluation() else {}
        test, train, cost = (_table(result.get(name, {}), f"{RESULT}, {name}") for name in ("test", "train", "cost"))
        if self.task.main_metric not in test:
            raise ValueError(f"{RESULT}, test has no {self.task.main_metric}")
        parts = ((test, self._test), (train, TRAIN), (cost, COST), (extra, EXTRA_METRICS))
        data = _table(result.get("data", {}), f"{RESULT}, data")
        conditions, rates = data.get("record", []), _table(data.get("noise_rate", {}), f"{RESULT}, data, noise_rate")
        if not isinstance(conditions, list):
            raise ValueError(f"{RESULT}, data, record is {value_text(conditions)}, not a list")
        noise = [_table(condition, f"{RESULT}, data, record").get("realised_rate") for condition in conditions]
        noise = [rate for rate in noise if rate is not None]
        passes = _table(result.get("forward_passes") or {}, f"{RESULT}, forward_passes")
        counts = [_number(count, "forward_passes") or 0 for count in passes.values()]
        numbers = {
            **{name: part.get(name) for part, names in parts for name in names},
            "noise_rate": noise[0] if noise else None,  # of the whole training split
            "trained_noise_rate": rates.get("train") if noise else None,  # without held-out samples
            "seconds": result.get("seconds"),
            "forward_passes": sum(counts) if counts else None,
        }
        for name, value in numbers.items():
            if name in _TABLES:
                for entry in _table(value if value is not None else {}, name).values():
                    for number in _entries(entry):
                        _number(number, name)
            else:
                _number(value, name)
        return {**numbers, "curve": _curve(folder / METRICS, self.task.main_metric)}


def _curve(file: Path, main: str) -> dict[str, Any]:
    """Return the first learner's metrics by epoch, over all fits; empty if there is no such file."""
    learners = []
    for number, line in enumerate(_content(file).splitlines() if file.exists() else (), 1):
        position = f"{file.name}, line {number}"
        try:
            epoch = _table(parse_json(line), position)
        except ValueError as error:
            raise ValueError(f"{position}: {one_line(error)}") from error
        by_learner = _table(epoch.get("learners"), f"{position}, learners")
        if not by_learner:
            raise ValueError(f"{position}, learners is empty")
        learners.append(_table(next(iter(by_learner.values())), f"{position}, learners"))
        for name, value in learners[-1].items():
            _number(value, f"{position}, {name}")
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
    """Whether a ``study.json`` has exactly the form in which studies write it."""
    declaration = _read(file) or {}
    return "pairs" in declaration and read_file(file) == _text(declaration)


def _requested(fields: Any) -> ExtraEvaluation | None:
    """A recorded extra evaluation; ``None`` if it is damaged."""
    try:
        return ExtraEvaluation(**_table(fields, "requested"))
    except (TutelageError, ValueError, TypeError):
        return None


def _entries(entry: Any) -> list[Any]:
    """The numbers of an entry of a table: of a list, of a table, or the entry."""
    if isinstance(entry, dict):
        return [*entry.values()]
    return entry if isinstance(entry, list) else [entry]


def _table(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {value_text(value)}, not a table")
    return value


def _number(value: Any, name: str) -> Any:
    if not is_number(value):
        raise ValueError(f"{name} is {value_text(value)}, not a number")
    return value


def _content(file: Path) -> bytes:
    try:
        return read_file(file)
    except OSError as error:
        raise ValueError(f"{file.name} cannot be read: {error.strerror or one_line(error)}") from error


def _read(file: Path) -> dict[str, Any] | None:
    """Return the content of a file; ``None`` if it is missing or damaged, so that its run is repeated."""
    try:
        content = parse_json(_content(file))
    except ValueError:
        return None
    return content if isinstance(content, dict) else None
