"""Settings of the method mean_teacher_lc."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tutelage.config import Recipe
from tutelage.models.tapped import Tapped
from tutelage.sources import EMA, SecondView
from tutelage.training import Learner, Run
from tutelage.training.fit import FitResult

Net = Callable[..., Tapped]
SHORT_RECIPE = Recipe(epochs=3, batch_size=10, lr=0.05)


class RecordingRun(Run):
    """A run that records its learners instead of training them."""

    learner: Learner
    order: Any

    def fit(self, *learners: Learner, order: Any = None, **_: Any) -> FitResult:
        (self.learner,), self.order = learners, order
        return FitResult((), {})


def average_of(learner: Learner) -> EMA:
    assert isinstance(learner.source, SecondView)
    assert isinstance(learner.source.source, EMA)
    return learner.source.source
