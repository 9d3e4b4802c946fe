"""The training curve of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tutelage.report.figures.frame import Array, blank_figure, limits_of, name_axes, stroke
from tutelage.report.svg import ACCENT, QUIET, Sheet, style
from tutelage.tasks import Metric, Task


@dataclass(frozen=True)
class TrainingCurve:
    """The figure of a run's training.

    Attributes:
        drawing: SVG; empty without values.
        definitions: what the page must contain for it.
        training: whether it has a line for training batches.
        held_out: whether it has a line for held-out samples.
    """

    drawing: str = ""
    definitions: str = ""
    training: bool = False
    held_out: bool = False


def training_curve(history: Sequence[Mapping[str, Any]], task: Task) -> TrainingCurve:
    """The main metric by epoch, on training batches and on held-out samples, of the first learner of each fit.

    Epochs of several fits follow each other.
    """
    metric = task.metrics[task.main_metric]
    if not isinstance(metric, Metric) or len(history) < 2:
        return TrainingCurve()
    scale = 100.0 if metric.percent else 1.0
    learners = [next(iter(record["learners"].values())) for record in history]
    training, held_out = (
        scale * _values([learner.get(f"{kind}_{task.main_metric}") for learner in learners])
        for kind in ("train", "validation")
    )
    has_training, has_held_out = (bool(np.isfinite(values).any()) for values in (training, held_out))
    if not has_training and not has_held_out:
        return TrainingCurve()
    sheet, epochs = Sheet(), np.arange(1.0, len(history) + 1)
    with style():
        figure = blank_figure(520, 230, left=46, top=26, bottom=34)
        (axes,) = figure.axes
        axes.set_xlim(1, len(history))
        axes.set_ylim(*limits_of([training, held_out], high=scale if metric.percent else math.inf))
        axes.add_artist(stroke(epochs, training, QUIET, linewidth=1.3))
        axes.add_artist(stroke(epochs, held_out, ACCENT, linewidth=1.8))
        name_axes(axes, "epoch", f"{metric.short_title}{', %' if metric.percent else ''}")
        names = [*["training batches"] * has_training, *["held-out samples"] * has_held_out]
        drawing = sheet.drawing(figure, f"{metric.short_title} by epoch, on {' and on '.join(names)}")
        return TrainingCurve(drawing, sheet.definitions(), has_training, has_held_out)


def _values(numbers: Sequence[float | None]) -> Array:
    return np.array([math.nan if number is None else number for number in numbers])
