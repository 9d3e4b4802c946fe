"""Gaussian class-conditional simplex loss."""

from __future__ import annotations

from tutelage.data.orders import class_balanced
from tutelage.errors import TutelageError
from tutelage.methods import NonNegative, Positive, method
from tutelage.methods.gccs.loss import FEWEST, GaussianSimplex
from tutelage.models.surgery.simplex import VERTICES, apply
from tutelage.models.tapped import Tapped
from tutelage.training.learner import Learner
from tutelage.training.run import Run

CLIP = 20.0  # [ours] of 1, 5, 20, 50, 100 and 300 what trains a ResNet-8 on digits furthest, at a learning rate of 0.05


@method(paper="Ali, Migliorati, Bianchi, Magli 2020, arXiv 2010.15487", family="robust losses", evidence="abstract")
def gccs(run: Run, *, scale: Positive = 70.0, tail: NonNegative = 0.2, full: bool = False) -> Tapped:
    """Gaussian simplex: the outputs of each class are to be one Gaussian at a vertex of a simplex.

    The classifier gives z in R^C, without softmax. With m_i and S_i the mean and covariance of the outputs of class i
    in the batch, and t_i = scale e_i, L = mean over classes of A_i + tail B_i:
    A_i = -log |S_i| - C + tr S_i + ||m_i - t_i||^2, twice the KL divergence of N(m_i, S_i) from N(t_i, I), and
    B_i = sum over coordinates of |kurtosis - 3|. S_i is taken as diagonal unless ``full``.
    The network answers with the nearest vertex, which is argmax z. Its logits are z / scale, of which a softmax is of
    use where that of z is 0 and 1 to the last bit. Each batch has as many samples of each class, and a class with fewer
    than 3 does not count. Soft labels count as their largest class.

    Args:
        run: what to train; a teacher, if it has one, is not used.
        scale: mu_T, the distance of each vertex from the origin, where a standard deviation is 1.
        tail: the weight of B.
        full: whether |S_i| is that of the whole covariance, for classes with 2 C samples or more in the batch.

    The paper was not at hand: A, that kurtosis is penalised, and the defaults are [from memory]; the form of B, the
    diagonal, the mean over classes and balanced batches are [inferred].

    Deviations: the gradient of a distance of 70 would ruin the first steps, so that its norm is clipped at 20 where the
    recipe sets no clip. Weight decay is on the last layer too, which it should not be, since the recipe has one for all
    weights; with 5e-4 the means still end 0.3 from their vertices, on average on digits. Several processes take the
    statistics of their own shares.
    """
    share = run.recipe.batch_size // run.processes.world // run.data.num_classes
    if share < FEWEST:
        raise TutelageError(
            f"a batch of {run.recipe.batch_size} holds {share} samples of each of {run.data.num_classes} classes, and "
            f"their statistics take {FEWEST}, better 8; take batches of "
            f"{FEWEST * run.data.num_classes * run.processes.world} or more"
        )
    student = run.student()
    example = run.example(student)
    apply(student.module, example, scale=scale)
    student = student.rewrapped()
    clip = CLIP if run.recipe.clip is None else run.recipe.clip
    term = GaussianSimplex(VERTICES, scale, tail, full=full)
    run.fit(Learner(student, None, {"gccs": term}), order=class_balanced, clip=clip)
    return student
