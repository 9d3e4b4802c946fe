"""Probabilistic knowledge transfer."""

from __future__ import annotations

from tutelage.errors import TutelageError
from tutelage.methods import NonNegative, Positive, Share, method
from tutelage.models.tapped import Tapped
from tutelage.terms import ProbabilisticTransfer
from tutelage.training.learner import Learner
from tutelage.training.run import Run


@method(paper="Passalis, Tefas 2018, arXiv 1803.10837", family="relation", task=None, evidence="abstract")
def pkt(run: Run, *, weight: NonNegative = 470.0, kd_alpha: Share = 0.0, kd_temperature: Positive = 4.0) -> Tapped:
    """Probabilistic knowledge transfer (PKT): match which samples of a batch are likely neighbours.

        L = CE(z, y) + weight mean over i of sum_j p^T(j | i) log(p^T(j | i) / p^S(j | i))
        p(j | i) = K(x_i, x_j) / sum_k K(x_i, x_k),  K(a, b) = (1 + cos(a, b)) / 2

    x are the embeddings, the inputs of the classifiers, of any widths.

    Args:
        run: the run.
        weight: the weight. Benchmarks have 30000 times the mean over all pairs at batch 64, for which 470
            is the equal value here, at any batch size.
        kd_alpha: combine with Hinton's loss: (1 - kd_alpha) CE + kd_alpha T^2 KL replaces CE.
        kd_temperature: T of Hinton's loss.

    Deviations: the mean of the rows' divergences, whose weight does not depend on the batch size, and a sample with
    itself counts, as in the authors' code. With several processes, each compares its own share of the batch.
    """
    if run.recipe.batch_size < 2:
        raise TutelageError("PKT compares the samples of a batch; use a batch size of 2 or more")
    student = run.student()
    terms = run.label_terms(kd_alpha, kd_temperature) | {"pkt": weight * ProbabilisticTransfer()}
    run.fit(Learner(student, run.frozen(run.teacher()), terms))
    return student
