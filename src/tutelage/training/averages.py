"""Moving averages of the learners' weights, which are evaluated and saved in place of the last weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tutelage.errors import TutelageError
from tutelage.models.state import copy_network
from tutelage.models.tapped import Tapped
from tutelage.sources.ema import update_average
from tutelage.training.learner import Learner


class Averages:
    """An exponential moving average of each learner's deployed network.

    After update t (from 1): average <- a average + (1 - a) weights, with a = min(decay, (1 + t) / (10 + t)): at first
    the average is of about the last tenth of the updates, so that it does not lag behind in a short fit. Running
    statistics of batch normalization are averaged alike; other buffers are copied.

    Args:
        learners: the cohort, on its device.
        decay: the largest a, in [0, 1); ``None`` makes no averages.

    Raises:
        TutelageError: a deployed network cannot be copied, or is not trained, so that it has no average.
    """

    def __init__(self, learners: Sequence[Learner], decay: float | None) -> None:
        self._decay = decay
        self._averages: dict[Learner, Tapped] = {}
        self._updates: dict[Learner, int] = {}
        for learner in learners if decay is not None else ():
            trained = set(learner.parameters())
            name = type(learner.deployed.module).__name__
            if not any(parameter in trained for parameter in learner.deployed.parameters()):
                raise TutelageError(
                    f"ema averages the weights that are trained, and {name}, which learner {learner.name!r} deploys, "
                    "has none: it is an average already, or frozen; leave ema out"
                )
            self._averages[learner] = copy_network(learner.deployed, name, "ema averages a copy; leave ema out")
            self._updates[learner] = 0

    def network(self, learner: Learner) -> Tapped:
        """The network that is evaluated: the average, or else the deployed network itself."""
        return self._averages.get(learner, learner.deployed)

    def after_step(self, learner: Learner) -> None:
        """Update the learner's average, if there is one, with its weights."""
        if self._decay is None:
            return
        self._updates[learner] += 1
        number = self._updates[learner]
        update_average(self._averages[learner], learner.deployed, min(self._decay, (1 + number) / (10 + number)))

    def deploy(self) -> None:
        """Replace the weights of the deployed networks by their averages."""
        for learner, average in self._averages.items():
            learner.deployed.module.load_state_dict(average.module.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """The averages and their numbers of updates, by the learner's name."""
        return {
            learner.name: {"model": average.module.state_dict(), "updates": self._updates[learner]}
            for learner, average in self._averages.items()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore saved averages."""
        for learner, average in self._averages.items():
            average.module.load_state_dict(state[learner.name]["model"])
            self._updates[learner] = state[learner.name]["updates"]
