"""Decoupled knowledge distillation."""

from __future__ import annotations

from tutelage.methods import NonNegative, Positive, Share, method
from tutelage.models.tapped import Tapped
from tutelage.terms import DecoupledSoftTargets
from tutelage.training.learner import Learner
from tutelage.training.run import Run


@method(paper="Zhao, Cui, Song, Qiu, Liang 2022, arXiv 2203.08679", family="response", evidence="abstract")
def dkd(
    run: Run,
    *,
    alpha: NonNegative = 1.0,
    beta: NonNegative = 8.0,
    temperature: Positive = 4.0,
    ce: NonNegative = 1.0,
    warmup: Share = 20 / 240,
) -> Tapped:
    """Decoupled knowledge distillation (DKD): separate weights for target and other classes.

        L    = ce CE(z, y) + min(1, e / warmup) T^2 (alpha TCKD + beta NCKD)
        TCKD = KL((p_y^T, 1 - p_y^T) || (p_y^S, 1 - p_y^S))
        NCKD = KL of the probabilities of the other classes, divided by 1 - p_y

    Hinton's divergence is TCKD + (1 - p_y^T) NCKD: where the teacher is certain, it hardly conveys how the other
    classes relate.

    Args:
        run: the run.
        alpha: the weight of the target class, 1 in the authors' code, as all defaults here.
        beta: the weight of the other classes; 8 for CIFAR networks, and less for a teacher that is less certain.
        temperature: T.
        ce: the weight of the label loss.
        warmup: the share e of the run in which the distillation loss grows linearly from 0; the authors have 20 of 240
            epochs.

    Deviations: the weight grows with every step instead of every epoch. Samples without a label have no target class
    and contribute nothing.
    """
    student = run.student()
    loss = DecoupledSoftTargets(alpha, beta, temperature)

    def weight(progress: float) -> float:
        return min(1.0, progress / warmup) if warmup else 1.0

    terms = {"ce": ce * run.label_task.label_loss(), "dkd": weight * loss}
    run.fit(Learner(student, run.frozen(*run.teachers()), terms))
    return student
