"""A detector of a seed and its students that are split by `ghnd`: what the experiments about them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from tutelage.config import Hardware, Recipe
from tutelage.data import Data
from tutelage.methods.ghnd import ghnd
from tutelage.models.tapped import Tapped
from tutelage.models.zoo import build
from tutelage.tasks import Compute, find_task
from tutelage.training import Learner, Run

WHOLE, GHND, HND, LABELS = "teacher", "GHND", "HND", "task loss"
ROWS = (WHOLE, GHND, HND, LABELS)
LOSSES: Mapping[str, Any] = {GHND: "ghnd", HND: "hnd", LABELS: "labels"}


@dataclass(frozen=True, eq=False)
class SplitDetectors:
    """A network on a data set, its recipes, and its trained detectors.

    Attributes:
        data: the data set of a seed.
        network: the name of the network, of teachers and students.
        teacher: the recipe of a teacher.
        student: the recipe of a student.
    """

    data: Callable[[int], Data]
    network: str
    teacher: Recipe
    student: Recipe

    def run(self, data: Data, seed: int, recipe: Recipe, teacher: Tapped | None = None) -> Run:
        """A run with a recipe."""

        def network() -> Tapped:
            module = build(self.network, num_classes=data.num_classes, input_shape=data.input_shape)
            return Tapped(module, *data.mean_std)

        hardware = Hardware(device="cpu", precision="float32", workers=0)
        teachers = [] if teacher is None else [teacher]
        run = Run(data, network, teachers, recipe=recipe, hardware=hardware, seed=seed)
        run.begin(find_task("detection"))
        return run

    @cache  # noqa: B019 - a few small networks, for the whole process
    def teacher_of(self, seed: int) -> tuple[Data, Tapped]:
        """The data of a seed, and a detector trained on it."""
        data = self.data(seed)
        run = self.run(data, seed, self.teacher)
        teacher = run.student()
        run.fit(Learner(teacher, None, run.label_terms()))
        return data, teacher

    def student_of(self, row: str, seed: int, lr: float, channels: int, **settings: Any) -> tuple[Run, Tapped]:
        """Train a row's student under the seed's teacher."""
        data, teacher = self.teacher_of(seed)
        run = self.run(data, seed, self.student, teacher)
        return run, ghnd(run, loss=LOSSES[row], lr=lr, channels=channels, **settings)


def precision_of(model: Tapped, data: Data, split: str) -> float:
    """Average precision on a split."""
    return find_task("detection").score(model, data.splits[split], data, Compute("cpu", workers=0))
