"""The evaluation of a finished run: the content of ``result.json``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tutelage.config import Config
from tutelage.data import Data
from tutelage.evaluation import cost_of
from tutelage.models.random_state import is_random
from tutelage.models.tapped import Tapped
from tutelage.runs.commands import as_command
from tutelage.runs.teachers import reference_teacher
from tutelage.sources.evaluated import CachedEvaluation
from tutelage.tasks import Compute, Task
from tutelage.training.loop import Record
from tutelage.training.run import Run
from tutelage.training.selection import Selected


def measure(
    config: Config,
    task: Task,
    data: Data,
    student: Tapped,
    teachers: Sequence[Tapped],
    run: Run,
    history: Sequence[Record],
) -> dict[str, Any]:
    """Evaluate the trained student on the test split, and collect the content of ``result.json``.

    Nothing else in a run reads the test split.
    """
    compute = Compute(config.device, workers=config.workers)
    teacher = reference_teacher(task, teachers, data)
    cached = None
    if teacher is not None:
        teacher = teacher.to(config.device)
        if config.teacher_cache and task.outputs_are_logits and not is_random(teacher):
            teacher = cached = CachedEvaluation(teacher, teachers, config.teacher_cache)
    metrics: dict[str, Any] = {
        "method": config.method,
        "settings": config.settings,
        "seed": config.seed,
        "task": task.name,
        "main": task.main_metric,
        "test": task.evaluate(student, data.test, data, compute, teacher=teacher),
    }
    for key, network in {"train": student, "teacher": teacher}.items():
        if network is not None and (values := task.evaluate_training_labels(network, data, compute)):
            metrics[key] = values
    if cached is not None:
        cached.save()
    metrics |= {
        "cost": cost_of(student, task.example(student, data), task.samples(student, data, data.test)),
        "data": data.summary(),
        "seconds": round(sum(record["seconds"] for record in history), 3),
        "forward_passes": {
            role: sum(record["forward_passes"][role] for record in history) for role in ("student", "teacher")
        },
        "command": as_command(config),
    }
    if (selected := run.selected.get(student)) is not None:
        metrics["selected"] = _at_selected_epoch(student, selected, task, data, compute)
    return metrics | ({"notes": run.notes} if run.notes else {})


def _at_selected_epoch(student: Tapped, selected: Selected, task: Task, data: Data, compute: Compute) -> dict[str, Any]:
    """Evaluate the weights of the selected epoch on the test split, then restore the student's last weights."""
    last = {name: value.clone() for name, value in student.module.state_dict().items()}
    student.module.load_state_dict(dict(selected.state))
    score = task.evaluate(student, data.test, data, compute)[task.main_metric]
    student.module.load_state_dict(last)
    return {
        "epoch": selected.epoch,
        f"validation_{task.main_metric}": selected.score,
        f"test_{task.main_metric}": score,
    }
