"""Correlation congruence."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tutelage.errors import TutelageError
from tutelage.methods import NonNegative, Positive, Share, method
from tutelage.models.tapped import Tapped
from tutelage.terms import CorrelationCongruence
from tutelage.training.learner import Learner
from tutelage.training.run import Run


@method(
    paper="Peng, Jin, Liu, Li, Wu, Liu, Zhou, Zhang 2019, arXiv 1904.01802",
    family="relation",
    task=None,
    evidence="abstract",
)
def cc(
    run: Run,
    *,
    weight: NonNegative = 30.0,
    gamma: Positive = 0.4,
    order: Annotated[int, Field(ge=1, le=10)] = 2,
    kd_alpha: Share = 0.0,
    kd_temperature: Positive = 4.0,
) -> Tapped:
    """Correlation congruence (CC): match the correlations of the embeddings of a batch, measured by a Gaussian kernel.

        L = CE(z, y) + weight 1/B^2 ||C_S - C_T||_F^2
        C_ij = exp(-2 gamma) sum_{p=0}^{order} (2 gamma)^p / p! (x_i . x_j)^p

    x are the embeddings, the inputs of the classifiers, scaled to length 1: C is the Taylor series of
    exp(-gamma ||x_i - x_j||^2).

    Args:
        run: the run.
        weight: the weight, our choice: the entries of C are of the size 0.4. The paper has 0.003 [from memory] with
            another reduction.
        gamma: of the kernel, 0.4 in the paper [from memory].
        order: the last power of the series, 2 in the paper [from memory].
        kd_alpha: combine with Hinton's loss: (1 - kd_alpha) CE + kd_alpha T^2 KL replaces CE. The paper has it.
        kd_temperature: T of Hinton's loss.

    Deviations: batches are shuffled as for every method; the paper samples classes or clusters. Benchmarks call another
    loss CC, the product of the differences of neighbouring samples, which is not the paper's.
    """
    if run.recipe.batch_size < 2:
        raise TutelageError("CC compares the samples of a batch; use a batch size of 2 or more")
    student = run.student()
    terms = run.label_terms(kd_alpha, kd_temperature) | {"cc": weight * CorrelationCongruence(gamma, order)}
    run.fit(Learner(student, run.frozen(run.teacher()), terms))
    return student
