"""Logit standardization."""

from __future__ import annotations

from tutelage.methods import NonNegative, Positive, method
from tutelage.models.tapped import Tapped
from tutelage.terms import StandardizedSoftTargets
from tutelage.training.learner import Learner
from tutelage.training.run import Run


@method(paper="Sun, Ren, Li, Wang, Cao 2024, arXiv 2403.01427", family="response", evidence="abstract")
def logit_standardization(
    run: Run, *, temperature: Positive = 2.0, weight: NonNegative = 9.0, ce: NonNegative = 0.1
) -> Tapped:
    """Logit standardization: Hinton's loss on Z-scores of the logits, so that each sample has its own temperature.

        L = ce CE(z, y) + weight T^2 KL(softmax(Z(v) / T) || softmax(Z(z) / T)),  Z(z) = (z - mean(z)) / std(z)

    z are the student's logits and v the teacher's; mean and standard deviation run over the classes of a sample. A
    student of less capacity need not reproduce the size of the teacher's logits.

    Args:
        run: the run.
        temperature: T, 2 in the authors' code [from memory, as the other defaults].
        weight: the weight of the soft targets.
        ce: the weight of the label loss.

    Deviations: of several teachers, the logarithm of the mean probability is standardized.
    """
    student = run.student()
    terms = {
        "ce": ce * run.label_task.label_loss(),
        "standardized": weight * StandardizedSoftTargets(temperature),
    }
    run.fit(Learner(student, run.frozen(*run.teachers()), terms))
    return student
