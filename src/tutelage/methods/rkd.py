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
    """Relational knowledge distillation (RKD): match distances and angles between the embeddings of a batch.

        L   = CE(z, y) + distance L_D + angle L_A
        L_D = mean over pairs of Huber(psi_D(s_i, s_j), psi_D(t_i, t_j))
        L_A = mean over triplets of Huber(psi_A(s_i, s_j, s_k), psi_A(t_i, t_j, t_k))

    s and t are the embeddings of student and teacher, the inputs of their classifiers. psi_D is a distance divided by
    the batch's mean distance, psi_A the cosine of the angle at j. Both losses are independent of scale, width and
    (except for a factor (N-1)/N) batch size.

    Args:
        run: the run.
        distance: the weight of L_D; 0 is RKD-A.
        angle: the weight of L_A; 0 is RKD-D. Benchmarks have 25 and 50 for classification, as the paper has [from
            memory]; the paper's metric learning has 1 and 2. The defaults are our choice, the benchmarks' divided by
            2.5: see docs/methods/weights.md.
        kd_alpha: combine with Hinton's loss: (1 - kd_alpha) CE + kd_alpha T^2 KL replaces CE.
        kd_temperature: T of Hinton's loss.

    Deviations: the direction between two samples closer than 1e-6 of the embeddings' range is taken as 0, without
    gradient (in the authors' code such a pair has a gradient of about 1e11). In batches of more than 256 samples, the
    angles at a random sample of the vertices are used instead of all N^3. With several processes, each compares its own
    share of the batch.
    """
    if run.recipe.batch_size < 3:
        raise TutelageError(
            f"RKD compares three samples of a batch of {run.recipe.batch_size}; use a batch size of 3 or more"
        )
    terms = run.label_terms(kd_alpha, kd_temperature) | {
        "distance": distance * DistanceRelations(),
        "angle": angle * AngleRelations(),
    }
    student = run.student()
    run.fit(Learner(student, run.frozen(run.teacher()), terms))
    return student
