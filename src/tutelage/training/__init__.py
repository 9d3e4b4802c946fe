"""Training: learners, update rules and the training loop."""

from tutelage.training.checkpoint import Checkpoints
from tutelage.training.distiller import Distiller
from tutelage.training.execution import Execution
from tutelage.training.fit import FitResult, fit
from tutelage.training.learner import Learner
from tutelage.training.optim import ParameterOptions
from tutelage.training.run import Run
from tutelage.training.updates import Alternating, Step, UpdateRule, in_turn, together

__all__ = [
    "Alternating",
    "Checkpoints",
    "Distiller",
    "Execution",
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
