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

_OTHER_MODULES = ("task", "metric", "drawing", "prediction", "lookup", "compatibility", "evaluate")
ENTRY_POINTS = "tutelage.tasks"


def find_task(name: str) -> Task:
    """The task of this name.

    Raises:
        TutelageError: there is no such task, or its package cannot be imported.
    """
    if name in _builtin_names():
        return _checked(name, importlib.import_module(f"{__package__}.{name}").task)
    points = _entry_points()
    if name not in points:
        raise unknown("task", name, task_names())
    try:
        return _checked(name, points[name].load())
    except Exception as error:
        if isinstance(error, TutelageError):
            raise
        raise TutelageError(f"the task {name!r} cannot be imported ({one_line(error)}); repair its package") from error


def task_names() -> list[str]:
    """The names of all tasks, sorted."""
    return sorted({*_builtin_names(), *_entry_points()})


def _builtin_names() -> list[str]:
    names = [module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])]
    return [name for name in names if name not in _OTHER_MODULES and not name.startswith("_")]


def _entry_points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


def _checked(name: str, task: object) -> Task:
    if not isinstance(task, Task):
        raise TutelageError(f"the task {name!r} is a {type(task).__name__}; make it an instance of a subclass of Task")
    return task


def task_of_network(module: nn.Module) -> Task | None:
    """The only task that a bare network can be meant for, such as generation; ``None`` if it does not determine one."""
    return next((task for task in map(find_task, _builtin_names()) if task.recognises(module)), None)


def wrap_network(module: nn.Module, mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,)) -> Tapped:
    """Wrap a bare network as a ``Tapped`` student or teacher, as its task does if the network determines one."""
    task = task_of_network(module)
    return Tapped(module, mean, std) if task is None else task.wrap(module, mean, std)
