"""Teacher-free knowledge distillation."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tutelage.methods import Positive, Share, method
from tutelage.models.tapped import Tapped
from tutelage.terms.virtual_teacher import VirtualTeacher
from tutelage.training.learner import Learner
from tutelage.training.run import Run


@method(paper="Yuan, Tay, Li, Wang, Feng 2020, arXiv 1909.11723", family="regularisation", evidence="abstract")
def tf_kd(
    run: Run,
    *,
    alpha: Share = 0.1,
    correct: Annotated[float, Field(gt=0, lt=1)] = 0.99,
    temperature: Positive = 20.0,
    multiplier: Positive = 1.0,
) -> Tapped:
    """Teacher-free distillation (Tf-KD): soft targets of a virtual teacher that is always right.

        L = (1 - alpha) CE(z, y) + alpha multiplier KL(softmax(log(u) / T) || softmax(z))
        u_y = correct, u_k = (1 - correct) / (C - 1) for each other class k

    It is label smoothing with a strength that follows from ``correct`` and T. For the paper's other form, in which a
    trained copy of the student teaches, give such a run as the teacher of ``hinton``, or use ``born_again``.

    Args:
        run: the run.
        alpha: the weight of the virtual teacher.
        correct: its probability for the label; the paper has 0.9 and more.
        temperature: T, 20 in the paper [from memory, as the other defaults].
        multiplier: a factor of the divergence; the authors' code has 1 to 100 for a divergence that is divided by the
            number of classes [from memory].

    Deviations: the divergence is summed over classes. The paper's equation softens the student by T, too; its authors'
    code, as here, does not. That code divides the probabilities u by T in place of their logarithms, which is nearly
    uniform for T = 20. Samples without a label contribute nothing.
    """
    student = run.student()
    terms = {
        "ce": (1 - alpha) * run.label_task.label_loss(),
        "virtual": alpha * multiplier * VirtualTeacher(correct, temperature),
    }
    run.fit(Learner(student, None, terms))
    return student
