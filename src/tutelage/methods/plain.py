"""No teacher: what every method is compared with."""

from __future__ import annotations

from tutelage.methods import method
from tutelage.models.tapped import Tapped
from tutelage.training.learner import Learner
from tutelage.training.run import Run


@method(paper="the ordinary way", family="baseline", task=None)
def plain(run: Run) -> Tapped:
    """The task's loss by the labels given, of classes cross-entropy, and no teacher."""
    student = run.student()
    run.fit(Learner(student, None, run.label_terms()))
    return student
