"""Distillation of activation boundaries."""

from __future__ import annotations

from tutelage.methods import NonNegative, Positive, Share, method
from tutelage.models.tapped import Tapped
from tutelage.terms import ActivationBoundaries
from tutelage.training.learner import Learner
from tutelage.training.run import Run


@method(paper="Heo, Lee, Yun, Choi 2019, arXiv 1811.03233", family="representation", task=None, evidence="abstract")
def ab(
    run: Run,
    *,
    margin: NonNegative = 1.0,
    share: Share = 0.1,
    kd_alpha: Share = 0.9,
    kd_temperature: Positive = 4.0,
) -> Tapped:
    """Activation boundaries (AB): the student first learns which of the teacher's neurons are active.

    Stage 1, without labels, trains the student up to its last stage:

        L = sum_j 2^(j - J) mean over neurons of [t > 0] max(0, m - c_j(s_j))^2 + [t <= 0] max(0, m + c_j(s_j))^2

    c_j is a trained 1x1 convolution with batch normalisation (a connector), which is discarded. Stage 2 trains the
    whole student by Hinton's loss, or by labels alone with ``kd_alpha=0``.

    Args:
        run: the run. Both stages together take its epochs (at least one each).
        margin: m, 1 in benchmarks (RepDistiller).
        share: the share of the epochs that stage 1 takes, our choice.
        kd_alpha: the weight of soft targets in stage 2: (1 - kd_alpha) CE + kd_alpha T^2 KL.
        kd_temperature: T.

    Deviations: the stages' maps are read after the ReLU, where a neuron is active if it is above 0; the student's are
    turned into signed values by the connector alone. The mean over neurons in place of the sum, so that the loss does
    not depend on the size of the maps.
    """
    student, teacher = run.student(), run.teacher()
    boundaries = ActivationBoundaries(run.paired_stages(student, teacher), margin)
    source = run.frozen(teacher)
    second_stage = Learner(student, source, run.label_terms(kd_alpha, kd_temperature))
    run.check(second_stage)
    first_epochs = max(1, round(share * run.epochs))
    run.fit(Learner(student, source, {"boundaries": boundaries}), epochs=first_epochs)
    run.fit(second_stage, epochs=max(1, run.epochs - first_epochs))
    return student
