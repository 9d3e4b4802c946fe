"""Refined logit distillation."""

from __future__ import annotations

from tutelage.methods import NonNegative, Positive, Share, method
from tutelage.models.tapped import Tapped
from tutelage.terms import RefinedSoftTargets
from tutelage.training.learner import Learner
from tutelage.training.run import Run


@method(paper="Sun, Chen, Lyu, Chen, Chen, Wang 2025, arXiv 2408.07703", family="response", evidence="code")
def rld(
    run: Run,
    *,
    alpha: NonNegative = 1.0,
    beta: NonNegative = 8.0,
    temperature: Positive = 4.0,
    ce: NonNegative = 1.0,
    warmup: Share = 20 / 240,
) -> Tapped:
    """Refined logit distillation (RLD): learn from a teacher's predictions without its mistakes.

        L   = ce CE(z, y) + min(1, e / warmup) T^2 (alpha SCD + beta MCD)
        SCD = KL((max p^T, 1 - max p^T) || (p_y^S, 1 - p_y^S))
        MCD = KL of the probabilities of the classes that the teacher ranks below the label, divided by their sum

    Where the teacher predicts the label, this is DKD. Where it does not, the student learns the teacher's confidence
    for the label, and nothing of the classes that the teacher prefers to it: labels correct the teacher, and the
    relations of the remaining classes stay as they are.

    Args:
        run: the run.
        alpha: the weight of the confidence, 1 in the authors' example for VGG-13 and VGG-8.
        beta: the weight of the remaining classes, 8 there.
        temperature: T, 4 there.
        ce: the weight of the label loss.
        warmup: the share e of the run in which the distillation loss grows linearly from 0; the authors' code has it,
            and the default is that of DKD, 20 of 240 epochs.

    Deviations: the weight grows with every step instead of every epoch. The code allows another temperature for SCD.
    Labels are trusted: where they are wrong, the correct prediction of the teacher is masked. Samples without a label
    contribute nothing.
    """
    student = run.student()
    loss = RefinedSoftTargets(alpha, beta, temperature)

    def weight(progress: float) -> float:
        return min(1.0, progress / warmup) if warmup else 1.0

    terms = {"ce": ce * run.label_task.label_loss(), "rld": weight * loss}
    run.fit(Learner(student, run.frozen(*run.teachers()), terms))
    return student
