"""Neuron selectivity transfer."""

from __future__ import annotations

from tutelage.methods import NonNegative, Positive, Share, method
from tutelage.models.tapped import Tapped
from tutelage.terms import NeuronSelectivity
from tutelage.training.learner import Learner
from tutelage.training.run import Run


@method(paper="Huang, Wang 2017, arXiv 1707.01219", family="representation", task=None, evidence="abstract")
def nst(run: Run, *, weight: NonNegative = 5.0, kd_alpha: Share = 0.0, kd_temperature: Positive = 4.0) -> Tapped:
    """Neuron selectivity transfer (NST): match the distributions of the neurons' activation patterns.

        L = CE(z, y) + weight sum over stages of MMD^2(S, T),  k(x, y) = (x . y)^2
        MMD^2 = mean k(t, t') + mean k(s, s') - 2 mean k(s, t)

    Each channel of a stage's map is a neuron: its activations at all positions, scaled to length 1. Stages are paired
    from the last one backwards; the larger of two maps is average-pooled.

    Args:
        run: the run.
        weight: the weight, our choice. Benchmarks have 50, under which small students on 8 x 8 digits
            fell far behind plain training.
        kd_alpha: combine with Hinton's loss: (1 - kd_alpha) CE + kd_alpha T^2 KL replaces CE.
        kd_temperature: T of Hinton's loss.

    Deviations: all stages, as in benchmarks; the paper has the last one. Only the polynomial kernel of degree 2.
    """
    student, teacher = run.student(), run.teacher()
    loss = NeuronSelectivity(run.paired_stages(student, teacher))
    run.fit(Learner(student, run.frozen(teacher), run.label_terms(kd_alpha, kd_temperature) | {"nst": weight * loss}))
    return student
