"""Drawings of predictions on the test split of a run, for tasks that have any."""

from __future__ import annotations

from dataclasses import dataclass

from tutelage.ambient import default_settings
from tutelage.config import Hardware
from tutelage.errors import TutelageError
from tutelage.report.image import png_uri
from tutelage.runs.models import open_trained
from tutelage.runs.run_data import open_run_data
from tutelage.tasks import Compute, Task
from tutelage.text import printable
from tutelage.training.hardware import resolve
from tutelage.trust import Trust, typed_specs

_LARGEST = 720  # pixels


@dataclass(frozen=True)
class RunDrawing:
    """A drawing as the page needs it: a data URI, and its caption."""

    image: str
    caption: str


@default_settings()
def run_drawings(run: str, task: Task, *, device: str = "auto", trust: Trust | None = None) -> tuple[RunDrawing, ...]:
    """Test samples with the student's predictions drawn in, as the task chooses and draws them.

    Raises:
        TutelageError: the data cannot be opened.
    """
    data = open_run_data(run)
    network = open_trained(run, data, trust=typed_specs(run) if trust is None else trust)
    compute = Compute(device=resolve(Hardware(device=device)).device)
    drawings = task.drawings(network.model.to(compute.device), data.test, data, compute)
    if not drawings:
        raise TutelageError(f"the task {task.name} drew no test sample of {data.name}")
    return tuple(RunDrawing(png_uri(drawing.pixels, _LARGEST), printable(drawing.caption)) for drawing in drawings)
