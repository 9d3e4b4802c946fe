"""Similarity-preserving distillation."""

from __future__ import annotations

from tutelage.errors import TutelageError
from tutelage.methods import NonNegative, Positive, Share, method
from tutelage.models.tapped import Tapped
from tutelage.terms import SimilarityPreserving
from tutelage.training.learner import Learner
from tutelage.training.run import Run


@method(paper="Tung, Mori 2019, arXiv 1907.09682", family="relation", task=None, evidence="abstract")
def sp(run: Run, *, gamma: NonNegative = 300.0, kd_alpha: Share = 0.0, kd_temperature: Positive = 4.0) -> Tapped:
    """Similarities: samples that the teacher finds alike, the student is to find alike.

    L = CE(z, y) + gamma * (b / 64) * 1/b^2 ||G_T - G_S||_F^2, where the rows of G are those of Q Q^T at length 1, and Q
    (b x c h w) holds a batch's activations of the last stage, flattened. The rows have unit length, so that the paper's
    term shrinks as 1/b; with the factor b / 64 a row's weight is the same for every batch size.

    Args:
        run: what to train.
        gamma: the paper has 3000 [from memory] at batch 128, which 1500 recovers; benchmarks have 3000 at batch 64,
            which 3000 recovers. The default is ours, for what it does to small students: see docs/methods/weights.md.
        kd_alpha: above 0, Hinton's term joins: (1 - kd_alpha) CE + kd_alpha T^2 KL in the place of CE.
        kd_temperature: its T.

    Deviations: the factor for the batch size and the default of gamma. The paper allows more layers; this is the last
    stage's output before pooling, as in the benchmarks. With several processes each compares its own share of the
    batch.
    """
    if run.recipe.batch_size < 2:
        raise TutelageError("SP compares the samples of a batch; take a batch size of 2 or more")
    student, teacher = run.student(), run.teacher()
    *_, last = run.paired_stages(student, teacher)
    terms = run.label_terms(kd_alpha, kd_temperature) | {"sp": gamma * SimilarityPreserving(*last)}
    run.fit(Learner(student, run.frozen(teacher), terms))
    return student
