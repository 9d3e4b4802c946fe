"""Tasks by name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from torch import nn

from tutelage.errors import TutelageError, one_line, unknown
from tutelage.models.tapped import Tapped
from tutelage.tasks.task import Task

_NO_TASKS = ("task", "lookup", "evaluate")
ENTRY_POINTS = "tutelage.tasks"


def find_task(name: str) -> Task:
    """The task of this name.

    Raises:
        TutelageError: there is none, or the package that has it cannot be imported.
    """
    if name in _own():
        return _checked(name, importlib.import_module(f"{__package__}.{name}").task)
    others = _others()
    if name not in others:
        raise unknown("task", name, task_names())
    try:
        return _checked(name, others[name].load())
    except Exception as error:
        if isinstance(error, TutelageError):
            raise
        raise TutelageError(f"the task {name!r} cannot be imported ({one_line(error)}); mend its package") from error


def task_names() -> list[str]:
    """The names of all tasks, sorted."""
    return sorted({*_own(), *_others()})


def _own() -> list[str]:
    names = [module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])]
    return [name for name in names if name not in _NO_TASKS and not name.startswith("_")]


def _others() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


def _checked(name: str, task: object) -> Task:
    if not isinstance(task, Task):
        raise TutelageError(f"the task {name!r} is a {type(task).__name__}; make it an instance of a subclass of Task")
    return task


def task_of_network(module: nn.Module) -> Task | None:
    """The task that a bare network can only be meant for, if there is one."""
    return next((task for task in map(find_task, _own()) if task.recognises(module)), None)


def wrap_network(module: nn.Module, mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,)) -> Tapped:
    """A bare network as one that learns or teaches, for the task that it can only be meant for or for any other."""
    task = task_of_network(module)
    return Tapped(module, mean, std) if task is None else task.wrap(module, mean, std)
