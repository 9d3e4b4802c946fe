"""A run up to its first step: whether a method can train a student on some data, and whether it reads a teacher."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tutelage.config import Config, Hardware
from tutelage.data import Data, Split
from tutelage.data.loader import evaluation_batches
from tutelage.errors import TutelageError
from tutelage.methods import Method
from tutelage.models.modes import eval_mode
from tutelage.models.tapped import Tapped
from tutelage.runs.models import make_student
from tutelage.tasks import Task
from tutelage.training.dry_run import dry_run, example_batch
from tutelage.training.fit import FitResult
from tutelage.training.learner import Learner, roles_to_read
from tutelage.training.run import Run

_HARDWARE = Hardware(device="cpu", precision="float32", channels_last=False, workers=0)


class Rehearsal(Run):
    """A run whose fits do the dry run in eval mode and no step, and whose predictions are all equal.

    Train mode is left to the run itself: what fails there (and may end its process) is that run's failure alone.

    Attributes:
        fits_tried: how many fits passed their dry run.
        taught: whether a teacher was requested.
    """

    fits_tried = 0
    taught = False

    def teachers(self) -> tuple[Tapped, ...]:
        """See ``Run.teachers``."""
        self.taught = True
        return super().teachers()

    def predict(self, model: Tapped, split: Split, roles: Sequence[str] = ("logits",)) -> Tensor:
        """Zeros: (N, C) logits, or (N, K) of roles that are K wide in this network."""
        if tuple(roles) == ("logits",):
            return torch.zeros(len(split), self.data.num_classes)
        inputs = next(evaluation_batches(split.subset(torch.arange(min(2, len(split)))), workers=0)).inputs
        with eval_mode(model), torch.no_grad():
            outputs = model.tap(inputs, roles)
        return torch.zeros(len(split), sum(outputs[role].flatten(1).shape[1] for role in roles))

    def fit(self, *learners: Learner, data: Data | None = None, task: Task | None = None, **_: Any) -> FitResult:
        """Do the dry run."""
        self._dry_run(learners, self.data if data is None else data, self.task if task is None else task)
        self.fits_tried += 1
        return FitResult((), {})

    def check(self, *learners: Learner) -> None:
        """Do the dry run."""
        self._dry_run(learners, self.data, self.task)

    def _dry_run(self, learners: Sequence[Learner], data: Data, task: Task) -> None:
        self.check_labels(learners)
        roles = {learner: roles_to_read(learner, learners) for learner in learners}
        dry_run(learners, roles, task, data, example_batch(data, torch.device("cpu")), train_mode=False)


def reads_teacher(
    method: Method, settings: Mapping[str, Any], data: Data, config: Config, teacher: Tapped | None, task: Task
) -> bool:
    """Rehearse a method, which trains for this task if it names none, on a student; on the CPU, in float32.

    Returns:
        Whether the method reads a teacher. True also where that could not be determined: a method may need the results
        of its first fit to get to its second.

    Raises:
        TutelageError: the method, the networks and the data do not fit together, up to the first fit's dry run.
    """
    run = Rehearsal(
        data,
        lambda: make_student(config.student, data, pretrained=config.pretrained),
        () if teacher is None else (teacher,),
        recipe=config.recipe(),
        hardware=_HARDWARE,
        seed=config.seed,
        check_labels=True,
        task=task,
    )
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            method(run, **settings)
    except TutelageError:
        if not run.fits_tried:
            raise
        return True
    except Exception:  # what only this imitation of a run made fail, or what the run itself will report
        return True
    return run.taught
