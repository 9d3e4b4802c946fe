"""Attention transfer."""

from __future__ import annotations

from tutelage.methods import NonNegative, Positive, method
from tutelage.models.tapped import Tapped
from tutelage.sources import Frozen
from tutelage.terms import AttentionTransfer, CrossEntropy
from tutelage.terms.attention import Form
from tutelage.training.learner import Learner
from tutelage.training.run import Run


@method(paper="Zagoruyko, Komodakis 2017, arXiv 1612.03928", family="representation")
def at(run: Run, *, beta: NonNegative = 1.0, p: Positive = 2.0, form: Form = "code") -> Tapped:
    """Attention: where each stage of the teacher responds, the student is to respond.

    L = CE + beta * sum over stages of AT.
    """
    student, teacher = run.student(), run.teacher()
    attention = AttentionTransfer(run.paired_stages(student, teacher), p, form, per_pixel=False)
    run.fit(Learner(student, Frozen(teacher), {"ce": CrossEntropy(), "at": beta * attention}))
    return student
