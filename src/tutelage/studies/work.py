"""What a worker does for a job of a study: the run, then the comparisons and the extra evaluation of its student."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tutelage.config import Config, ExtraEvaluation
from tutelage.data import Data
from tutelage.data.configured import load_data
from tutelage.files import atomic_write
from tutelage.runs.execute import Overrides, Result, execute
from tutelage.runs.models import open_teachers
from tutelage.runs.teachers import reference_teacher
from tutelage.studies.metrics import task_metrics
from tutelage.studies.records import EXTRA, TEACHER_COMPARISONS
from tutelage.tasks import Compute, find_task
from tutelage.trust import Trust


class WorkItem(NamedTuple):
    """A run for a worker.

    Attributes:
        config: of the run.
        folder: of the run.
        references: by name a configuration of each teacher to compare the student with.
        task: the task to train for; ``None`` where the method or the data determine it.
        extra: the extra evaluation.
        track: trackers, see ``train``.
        trust: whose code may be imported, see ``check_trusted``.
    """

    config: Config
    folder: Path
    references: Mapping[str, Config]
    task: str | None
    extra: ExtraEvaluation
    track: str | None
    trust: Trust | None


def work(item: WorkItem) -> None:
    """Do or resume the run, then the comparisons and the extra evaluation; all of it is written to the run's folder."""
    data = load_data(item.config)
    overrides = Overrides(data=data, task=find_task(item.task) if item.task else None)
    result = execute(item.config, item.folder, overrides=overrides, track=item.track, trust=item.trust)
    if item.references:
        _compare(result, data, item)
    if item.extra != ExtraEvaluation():
        _evaluate_extra(result, data, item)


def _compare(result: Result, data: Data, item: WorkItem) -> None:
    """Measure the metrics that need a teacher, for each teacher that the student is compared with."""
    device = result.config.device
    task, compute = find_task(result.metrics["task"]), Compute(device)
    missing = [metric for metric in task_metrics(task) if result.metrics["test"].get(metric) is None]
    by_teacher = {}
    for name, config in item.references.items():
        models = [opened.model for opened in open_teachers(config, data, trust=item.trust)]
        teacher = reference_teacher(task, models, data)
        teacher = None if teacher is None else teacher.to(device)
        metrics = task.evaluate(result.model, data.test, data, compute, teacher=teacher)
        by_teacher[name] = {metric: metrics.get(metric) for metric in missing}
    atomic_write(item.folder / TEACHER_COMPARISONS, json.dumps(by_teacher, allow_nan=False).encode(), follow=False)


def _evaluate_extra(result: Result, data: Data, item: WorkItem) -> None:
    config = result.config
    task, compute = find_task(result.metrics["task"]), Compute(config.device)
    metrics = task.evaluate_extra(result.model, data, item.extra, compute, seed=config.seed)
    text = json.dumps({"requested": item.extra.model_dump(mode="json"), **metrics}, allow_nan=False)
    atomic_write(item.folder / EXTRA, text.encode(), follow=False)
