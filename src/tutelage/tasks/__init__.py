"""Tasks: metrics, supervised loss and evaluation of a network. One file per task, found by name.

The file ``tasks/NAME.py`` defines an instance of ``Task`` named ``task``; other packages add tasks through the entry
point group ``tutelage.tasks``.
"""

from tutelage.tasks.compatibility import incompatibility
from tutelage.tasks.drawing import Drawing
from tutelage.tasks.evaluate import evaluate
from tutelage.tasks.lookup import find_task, task_names, task_of_network, wrap_network
from tutelage.tasks.metric import Curve, Metric
from tutelage.tasks.task import Compute, Task

__all__ = [
    "Compute",
    "Curve",
    "Drawing",
    "Metric",
    "Task",
    "evaluate",
    "find_task",
    "incompatibility",
    "task_names",
    "task_of_network",
    "wrap_network",
]
