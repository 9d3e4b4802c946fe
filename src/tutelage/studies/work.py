"""What a worker does: runs of one stream of batches side by side, and what a study measures of each beyond it."""

from __future__ import annotations

import json
import traceback
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from greenlet import getcurrent, greenlet

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
from tutelage.tasks import Compute, find
from tutelage.training.side_by_side import Seat, side_by_side
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


def work(
    pieces: Sequence[Piece], asked: ExtraEvaluation, track: str | None, trust: Trust | None = None
) -> list[Outcome]:
    """Runs of one stream, side by side, and what is to be measured beyond; called in a worker."""
    said: dict[greenlet, dict[str, None]] = defaultdict(dict)
    common = said[getcurrent()]

    def heard(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, TutelageWarning):
            said[getcurrent()][str(message)] = None

    def run(piece: Piece, seat: Seat) -> Outcome:
        try:
            overrides = Overrides(data=data, task=find(piece.task) if piece.task else None)
            result = execute(piece.config, piece.folder, overrides=overrides, track=track, seat=seat, trust=trust)
            _measure(result, piece.folder, data, asked, piece.compared, trust)
            error, trace = None, ""
        except Exception as problem:  # one run's trouble is not the study's
            error, trace = one_line(problem), traceback.format_exc()
        return Outcome(error, trace, tuple(common | said[getcurrent()]))

    with warnings.catch_warnings():
        warnings.simplefilter("always", TutelageWarning)
        warnings.showwarning = heard
        try:
            data = load_data(pieces[0].config)
        except Exception as problem:
            return [Outcome(one_line(problem), traceback.format_exc())] * len(pieces)
        over = side_by_side(*(partial(run, piece) for piece in pieces))
    return [outcome for outcome in over if isinstance(outcome, Outcome)]  # run() raises nothing


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
    task, compute = find(result.metrics["task"]), Compute(device)
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
