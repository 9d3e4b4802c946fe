"""Variational information distillation."""

from __future__ import annotations

from tutelage.methods import NonNegative, Positive, Share, method
from tutelage.models.tapped import Tapped
from tutelage.terms import VariationalInformation
from tutelage.training.learner import Learner
from tutelage.training.run import Run


@method(
    paper="Ahn, Hu, Damianou, Lawrence, Dai 2019, arXiv 1904.05835",
    family="representation",
    task=None,
    evidence="abstract",
)
def vid(
    run: Run,
    *,
    weight: NonNegative = 1.0,
    variance: Positive = 5.0,
    kd_alpha: Share = 0.0,
    kd_temperature: Positive = 4.0,
) -> Tapped:
    """Variational information distillation (VID): maximize a bound of the mutual information of the stages' features.

        L = CE(z, y) + weight sum over stages of mean of (t - mu(s))^2 / (2 sigma_c^2) + log(sigma_c^2) / 2

    The mean is over elements; mu is a trained network of three 1x1 convolutions, sigma_c^2 a trained variance of each
    channel of the teacher; both are discarded. Channels that the student cannot predict get a large variance and a
    small weight. Stages are paired from the last one backwards; the larger of two maps is average-pooled.

    Args:
        run: the run.
        weight: the weight, 1 in benchmarks.
        variance: the initial variance, 5 in benchmarks, after the authors' code.
        kd_alpha: combine with Hinton's loss: (1 - kd_alpha) CE + kd_alpha T^2 KL replaces CE.
        kd_temperature: T of Hinton's loss.

    Deviations: the paper also matches logits; here ``kd_alpha`` does.
    """
    student, teacher = run.student(), run.teacher()
    loss = VariationalInformation(run.paired_stages(student, teacher), variance)
    run.fit(Learner(student, run.frozen(teacher), run.label_terms(kd_alpha, kd_temperature) | {"vid": weight * loss}))
    return student
