"""Train neural networks with a teacher (knowledge distillation).

``distill`` and ``train`` run a whole training. For a training loop of your own, ``tutelage.losses`` has the losses as
functions of plain tensors, and ``Distiller`` is a module that runs student and teacher and returns the losses.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tutelage.api import distill, train
    from tutelage.config import Config, Hardware, Recipe
    from tutelage.data import Batch, Data, open_data
    from tutelage.errors import TutelageError, TutelageWarning
    from tutelage.labels import LabelIssues, label_issues
    from tutelage.methods import method
    from tutelage.models import Outputs, Tapped
    from tutelage.runs.calibrate import Calibrated, calibrate
    from tutelage.runs.predict_files import FilePredictions, predict_files
    from tutelage.runs.prediction import Predictions, predict_images
    from tutelage.sources import EMA, Frozen, Peers
    from tutelage.studies.results import Results
    from tutelage.studies.runner import run_study
    from tutelage.studies.study import Study
    from tutelage.tasks import evaluate
    from tutelage.terms import CrossEntropy, SoftTargets, Term
    from tutelage.training import Distiller, Execution, Learner, ParameterOptions, Run, fit

__version__ = "0.1.0"

_MODULES = {
    "tutelage.api": ("distill", "train"),
    "tutelage.config": ("Config", "Hardware", "Recipe"),
    "tutelage.data": ("Batch", "Data", "open_data"),
    "tutelage.errors": ("TutelageError", "TutelageWarning"),
    "tutelage.labels": ("LabelIssues", "label_issues"),
    "tutelage.tasks": ("evaluate",),
    "tutelage.methods": ("method",),
    "tutelage.models": ("Outputs", "Tapped"),
    "tutelage.runs.calibrate": ("Calibrated", "calibrate"),
    "tutelage.runs.predict_files": ("FilePredictions", "predict_files"),
    "tutelage.runs.prediction": ("Predictions", "predict_images"),
    "tutelage.sources": ("EMA", "Frozen", "Peers"),
    "tutelage.studies.results": ("Results",),
    "tutelage.studies.runner": ("run_study",),
    "tutelage.studies.study": ("Study",),
    "tutelage.terms": ("CrossEntropy", "SoftTargets", "Term"),
    "tutelage.training": ("Distiller", "Execution", "Learner", "ParameterOptions", "Run", "fit"),
}

__all__ = [
    "EMA",
    "Batch",
    "Calibrated",
    "Config",
    "CrossEntropy",
    "Data",
    "Distiller",
    "Execution",
    "FilePredictions",
    "Frozen",
    "Hardware",
    "LabelIssues",
    "Learner",
    "Outputs",
    "ParameterOptions",
    "Peers",
    "Predictions",
    "Recipe",
    "Results",
    "Run",
    "SoftTargets",
    "Study",
    "Tapped",
    "Term",
    "TutelageError",
    "TutelageWarning",
    "calibrate",
    "distill",
    "evaluate",
    "fit",
    "label_issues",
    "method",
    "open_data",
    "predict_files",
    "predict_images",
    "run_study",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import public names when they are first used, so that the command line's help does not wait for torch."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
