"""What a worker does: a run, and what a study measures beyond it."""

from __future__ import annotations

import json
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tutelage.config import Config, ExtraEvaluation
from tutelage.data import Data
from tutelage.data.configured import load_data
from tutelage.errors import TutelageWarning, one_line
from tutelage.files import atomic_write
from tutelage.runs.execute import Overrides, Result, execute
from tutelage.runs.models import open_teachers
from tutelage.runs.teachers import reference_teacher
from tutelage.studies.metrics import task_metrics
from tutelage.studies.records import BESIDE, EXTRA
from tutelage.tasks import Compute, find_task
from tutelage.trust import Trust


@dataclass(frozen=True)
class Outcome:
    """How a run ended: the error in one line, if any, where it came up, and what it warned of."""

    error: str | None = None
    trace: str = ""
    warnings: tuple[str, ...] = ()


class Piece(NamedTuple):
    """What a worker does.

    Attributes:
        config: of the run.
        folder: where it is kept.
        compared: by name the teachers to compare its student with, as configurations of them.
        task: what it is trained for, where neither its method nor its data say so.
    """

    config: Config
    folder: Path
    compared: Mapping[str, Config]
    task: str | None


def work(piece: Piece, asked: ExtraEvaluation, track: str | None, trust: Trust | None = None) -> Outcome:
    """One run, and what is to be measured beyond; called in a worker. Its error is returned, not raised."""
    said: dict[str, None] = {}

    def heard(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, TutelageWarning):
            said[str(message)] = None

    error, trace = None, ""
    with warnings.catch_warnings():
        warnings.simplefilter("always", TutelageWarning)
        warnings.showwarning = heard
        try:
            data = load_data(piece.config)
            overrides = Overrides(data=data, task=find_task(piece.task) if piece.task else None)
            result = execute(piece.config, piece.folder, overrides=overrides, track=track, trust=trust)
            _measure(result, piece.folder, data, asked, piece.compared, trust)
        except Exception as problem:  # one run's trouble is not the study's
            error, trace = one_line(problem), traceback.format_exc()
    return Outcome(error, trace, tuple(said))


def _measure(
    result: Result,
    folder: Path,
    data: Data,
    asked: ExtraEvaluation,
    compared: Mapping[str, Config],
    trust: Trust | None,
) -> None:
    """Measure what the run itself does not, into the run's folder."""
    device = result.config.device
    task, compute = find_task(result.metrics["task"]), Compute(device)
    if compared:
        beside = {}
        missing = [metric for metric in task_metrics(task) if result.metrics["test"].get(metric) is None]
        for name, config in compared.items():
            teacher = reference_teacher(task, [one.model for one in open_teachers(config, data, trust=trust)], data)
            teacher = None if teacher is None else teacher.to(device)
            found = task.evaluate(result.model, data.test, data, compute, teacher=teacher)
            beside[name] = {metric: found.get(metric) for metric in missing}
        atomic_write(folder / BESIDE, json.dumps(beside, allow_nan=False).encode(), follow=False)
    if asked != ExtraEvaluation():
        measured = task.evaluate_extra(result.model, data, asked, compute, seed=result.config.seed)
        text = json.dumps({"asked": asked.model_dump(mode="json"), **measured}, allow_nan=False)
        atomic_write(folder / EXTRA, text.encode(), follow=False)
