"""Training: learners, update rules and the training loop."""

from tutelage.training.distiller import Distiller
from tutelage.training.fit import FitResult, fit
from tutelage.training.learner import Learner
from tutelage.training.optim import ParameterOptions
from tutelage.training.run import Run
from tutelage.training.updates import Alternating, Step, UpdateRule, in_turn, together

__all__ = [
    "Alternating",
    "Distiller",
    "FitResult",
    "Learner",
    "ParameterOptions",
    "Run",
    "Step",
    "UpdateRule",
    "fit",
    "in_turn",
    "together",
]
