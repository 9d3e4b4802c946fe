"""Dry runs of methods: whether a method can train a student on some data, and whether it reads a teacher."""

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
    """A run whose fits only do a dry run in eval mode, without steps, and whose predictions are all zero.

    Errors of train mode, which may end the process, are left to the run itself.

    Attributes:
        fits_tried: the number of fits that passed their dry run.
        teacher_read: whether the method requested the teachers.
    """

    fits_tried = 0
    teacher_read = False

    def teachers(self) -> tuple[Tapped, ...]:
        """See ``Run.teachers``."""
        self.teacher_read = True
        return super().teachers()

    def predict(self, model: Tapped, split: Split, roles: Sequence[str] = ("logits",)) -> Tensor:
        """Return zeros: logits (N, C), or (N, K) for other roles, K values per sample together."""
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
    """Do the dry run of a method on a student, on the CPU in float32; the task is for methods that name none.

    Returns:
        Whether the method reads a teacher; True also if that could not be determined, for example because the method
        needs the results of its first fit.

    Raises:
        TutelageError: the method, the networks and the data are incompatible, before or in the first fit's dry run.
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
    except Exception:  # caused by the zeros above, or reported by the run itself later
        return True
    return run.teacher_read
