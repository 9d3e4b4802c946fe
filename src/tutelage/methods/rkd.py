"""Relational knowledge distillation."""

from __future__ import annotations

from tutelage.errors import TutelageError
from tutelage.methods import NonNegative, Positive, Share, method
from tutelage.models.tapped import Tapped
from tutelage.terms import AngleRelations, DistanceRelations
from tutelage.training.learner import Learner
from tutelage.training.run import Run


@method(paper="Park, Kim, Lu, Cho 2019, arXiv 1904.05068", family="relation", task=None, evidence="code")
def rkd(
    run: Run,
    *,
    distance: NonNegative = 10.0,
    angle: NonNegative = 20.0,
    kd_alpha: Share = 0.0,
    kd_temperature: Positive = 4.0,
) -> Tapped:
    """Relations: distances and angles among a batch's embeddings, as the teacher has them.

    L = CE(z, y) + distance * L_D + angle * L_A. L_D is the mean over pairs of Huber(psi_D(s), psi_D(t)), psi_D the
    distance of two embeddings over the batch's mean distance; L_A the mean over triplets of Huber(psi_A(s), psi_A(t)),
    psi_A the cosine at the middle one. The embedding is what the classifier is given. Both are free of scale, width and
    (but for a factor (N-1)/N) batch size, so that its weights need no normalising.

    Args:
        run: what to train.
        distance: its weight; 0 leaves RKD-A.
        angle: its weight; 0 leaves RKD-D. The benchmarks have 25 and 50 for classification, as the paper has [from
            memory]; in the paper's metric learning they are 1 and 2. The defaults are ours, the benchmarks' by 2.5: see
            docs/methods/weights.md.
        kd_alpha: above 0, Hinton's term joins: (1 - kd_alpha) CE + kd_alpha T^2 KL in the place of CE.
        kd_temperature: its T.

    Deviations: two samples closer than 1e-6 of the embeddings' range have no direction and no gradient (the authors'
    code gives such a pair one of 1e11). In batches of more than 256 a random part of the vertices stands for all N^3
    angles. With several processes each compares its own share of the batch.
    """
    if run.recipe.batch_size < 3:
        raise TutelageError(f"RKD compares three samples of a batch; {run.recipe.batch_size} are too few, take more")
    terms = run.label_terms(kd_alpha, kd_temperature) | {
        "distance": distance * DistanceRelations(),
        "angle": angle * AngleRelations(),
    }
    student = run.student()
    run.fit(Learner(student, run.frozen(run.teacher()), terms))
    return student
