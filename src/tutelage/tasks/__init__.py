"""What is asked of a network: one file a task, found by name as methods are.

The file ``tasks/NAME.py`` has an instance of ``Task`` under the name ``task``; packages outside add theirs by the entry
point group ``tutelage.tasks``.
"""

from tutelage.tasks.evaluate import evaluate
from tutelage.tasks.lookup import find_task, task_names, task_of_network, wrap_network
from tutelage.tasks.task import Compute, Curve, Metric, Task

__all__ = [
    "Compute",
    "Curve",
    "Metric",
    "Task",
    "evaluate",
    "find_task",
    "task_names",
    "task_of_network",
    "wrap_network",
]
