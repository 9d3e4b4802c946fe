"""No teacher: what every method is compared with."""

from __future__ import annotations

from tutelage.methods import method
from tutelage.models.tapped import Tapped
from tutelage.training.learner import Learner
from tutelage.training.run import Run


@method(paper="ordinary supervised training", family="baseline", task=None)
def plain(run: Run) -> Tapped:
    """Plain training: the task's loss on the labels, without a teacher. For classes that is cross-entropy."""
    student = run.student()
    run.fit(Learner(student, None, run.label_terms()))
    return student
