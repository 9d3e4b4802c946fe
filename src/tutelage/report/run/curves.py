"""The training curve of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tutelage.report.figures.frame import Array, blank_figure, limits_of, name_axes, stroke
from tutelage.report.svg import ACCENT, QUIET, Sheet, style
from tutelage.tasks import Metric, Task


def training_curve(history: Sequence[Mapping[str, Any]], task: Task) -> tuple[str, str]:
    """The main metric by epoch, on training batches and on held-out samples, of the first learner of each fit.

    Epochs of several fits follow each other.

    Returns:
        The figure as SVG, empty without values, and the definitions that the page must contain.
    """
    metric = task.metrics[task.main_metric]
    if not isinstance(metric, Metric) or len(history) < 2:
        return "", ""
    scale = 100.0 if metric.percent else 1.0
    learners = [next(iter(record["learners"].values())) for record in history]
    training, held_out = (
        scale * _values([learner.get(f"{kind}_{task.main_metric}") for learner in learners])
        for kind in ("train", "validation")
    )
    if not np.isfinite([*training, *held_out]).any():
        return "", ""
    sheet, epochs = Sheet(), np.arange(1.0, len(history) + 1)
    with style():
        figure = blank_figure(520, 230, left=46, top=26, bottom=34)
        (axes,) = figure.axes
        axes.set_xlim(1, len(history))
        axes.set_ylim(*limits_of([training, held_out], high=scale if metric.percent else math.inf))
        axes.add_artist(stroke(epochs, training, QUIET, linewidth=1.3))
        axes.add_artist(stroke(epochs, held_out, ACCENT, linewidth=1.8))
        name_axes(axes, "epoch", f"{metric.short_title}{', %' if metric.percent else ''}")
        label = f"{metric.short_title} by epoch, on training batches and on held-out samples"
        return sheet.drawing(figure, label), sheet.definitions()


def _values(numbers: Sequence[float | None]) -> Array:
    return np.array([math.nan if number is None else number for number in numbers])
