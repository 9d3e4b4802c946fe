"""The folder of a study: plain files that anything can read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tutelage.config import Beyond
from tutelage.errors import TutelageError
from tutelage.files import LockedFolder, remove_abandoned
from tutelage.runs.commands import as_command
from tutelage.runs.folder import METRICS, RESULT
from tutelage.studies.plan import Asked, Job
from tutelage.studies.reading import RECORDS, STUDY, TRIALS
from tutelage.studies.study import Study

BEYOND, FAILURES = "beyond.json", "failures"

TEST = (
    *("accuracy", "worst_class_accuracy", "nll", "brier", "ece", "calibration_gap", "aurc"),
    *("agreement", "kl_to_teacher", "teacher_accuracy", "per_class_accuracy", "reliability", "risk_coverage"),
)
TRAIN = ("memorised", "wrong_labels")
COST = ("parameters", "flops", "latency_ms")
MORE = ("corruption_accuracy", "corruptions", "pgd", "auac", "zero_gradient_share", "ood_auroc")


class Store:
    """Reads and writes what a study keeps.

    ``study.json`` its declaration; ``results.jsonl`` a line a run that it asks for; ``trials.jsonl`` what tuning tried;
    ``runs/`` their folders; ``failures/`` the errors of those that failed.
    """

    def __init__(self, folder: LockedFolder, study: Study) -> None:
        self.path, self.evaluate = folder.path, study.evaluate
        self._write, self.check = folder.write, folder.check
        remove_abandoned(self.path / FAILURES, lambda name: name.endswith(".json"))
        self._write(self.path / STUDY, (json.dumps(study.as_json(), indent=2) + "\n").encode())
        self._records: dict[str, dict[str, Any]] = {}

    def folder(self, job: Job) -> Path:
        """Where a job's run is kept."""
        return self.path / "runs" / job.name

    def is_done(self, job: Job) -> bool:
        """Whether its run is finished and everything that is asked was measured."""
        if not _read(self.folder(job) / RESULT):
            return False
        asked = self.evaluate.model_dump(mode="json")
        return self.evaluate == Beyond() or (_read(self.folder(job) / BEYOND) or {}).get("asked") == asked

    def epochs(self, job: Job, since: float) -> int:
        """How many epochs a run has written down since a time; 0 for one that has not begun."""
        file = self.folder(job) / METRICS
        with suppress(OSError):
            if file.stat().st_mtime >= since:
                return file.read_bytes().count(b"\n")
        return 0

    def keep_failure(self, job: Job, error: str, trace: str) -> None:
        """Write down why a run failed; attempts of one study follow each other in the file."""
        before = (_read(self._failure(job)) or {}).get("attempts", [])
        told = {"error": " ".join(error.split()), "traceback": trace}
        text = json.dumps({"run": job.name, "attempts": [*before, told]}, indent=1)
        self._write(self._failure(job), text.encode())

    def forget_failure(self, job: Job) -> None:
        """A run that failed before is done now."""
        self._failure(job).unlink(missing_ok=True)

    def _failure(self, job: Job) -> Path:
        return self.path / FAILURES / f"{job.name}.json"

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
        }
        if line.job.key not in self._records:
            measured = self._measured(line.job)
            if measured["status"] != "done":
                return told | measured
            self._records[line.job.key] = measured
        return told | self._records[line.job.key]

    def _measured(self, job: Job) -> dict[str, Any]:
        folder = self.folder(job)
        result = (_read(folder / RESULT) or {}) if self.is_done(job) else {}
        failure = _read(self._failure(job))
        status = "done" if result else "failed" if failure else "missing"
        noise = [step["realised_rate"] for step in result.get("data", {}).get("record", []) if "realised_rate" in step]
        parts = (
            (result.get("test", {}), TEST),
            (result.get("train", {}), TRAIN),
            (result.get("cost", {}), COST),
            ((_read(folder / BEYOND) or {}) if result and self.evaluate != Beyond() else {}, MORE),
        )
        passes = result.get("forward_passes")
        return {
            "status": status,
            "error": failure["attempts"][-1]["error"] if failure and status == "failed" else None,
            **{name: part.get(name) for part, names in parts for name in names},
            "noise_rate": noise[0] if noise else None,
            "seconds": result.get("seconds"),
            "forward_passes": sum(passes.values()) if passes else None,
            "curve": _curve(folder / METRICS) if result else None,
        }


def _curve(file: Path) -> dict[str, Any]:
    """The first learner's numbers by epoch, its fits one after another; ``None`` where there was none."""
    epochs = []
    with suppress(OSError, ValueError):
        epochs = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    learners = [next(iter(epoch["learners"].values())) for epoch in epochs]
    names = dict.fromkeys(name for learner in learners for name in learner)
    shares = ("train_accuracy", "validation_accuracy")
    return {
        "epoch": list(range(1, len(epochs) + 1)),
        **{name: [learner.get(name) for learner in learners] for name in shares},
        "loss": {name: [learner.get(name) for learner in learners] for name in names if name not in shares},
    }


def _read(file: Path) -> dict[str, Any] | None:
    """What a file holds; ``None`` if it is not there or not whole, for then its run has to be done again."""
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return read if isinstance(read, dict) else None
