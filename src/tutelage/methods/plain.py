"""No teacher: what every method is compared with."""

from __future__ import annotations

from tutelage.methods import method
from tutelage.models.tapped import Tapped
from tutelage.terms import CrossEntropy
from tutelage.training.learner import Learner
from tutelage.training.run import Run


@method(paper="the ordinary way", family="baseline")
def plain(run: Run) -> Tapped:
    """Cross-entropy with the labels given, and no teacher."""
    student = run.student()
    run.fit(Learner(student, None, {"ce": CrossEntropy()}))
    return student
