"""Gaussian class-conditional simplex loss."""

from __future__ import annotations

import warnings

from tutelage.data.batch import hard_labels
from tutelage.data.orders import class_balanced
from tutelage.errors import TutelageError, TutelageWarning
from tutelage.evaluation.temperature import fitted_temperature
from tutelage.methods import NonNegative, Positive, method
from tutelage.methods.gccs.loss import MIN_SAMPLES, GaussianSimplex
from tutelage.methods.gccs.surgery import simplex
from tutelage.models.tapped import Tapped
from tutelage.training.learner import Learner
from tutelage.training.run import Run

CLIP = 20.0  # [ours] of 1, 5, 20, 50, 100 and 300 what trains a ResNet-8 on digits furthest, at a learning rate of 0.05


@method(paper="Ali, Migliorati, Bianchi, Magli 2020, arXiv 2010.15487", family="robust losses", evidence="abstract")
def gccs(run: Run, *, scale: Positive = 70.0, tail: NonNegative = 0.2, full: bool = False) -> Tapped:
    """Gaussian class-conditional simplex loss (GCCS): make each class's outputs Gaussian around a simplex vertex.

        L   = mean over classes i of A_i + tail B_i
        A_i = -log |S_i| - C + tr S_i + ||m_i - t_i||^2,   twice KL(N(m_i, S_i) || N(t_i, I))
        B_i = sum over coordinates of |kurtosis - 3|

    m_i and S_i are the mean and covariance of the outputs z in R^C (without softmax) of class i in the batch, and
    t_i = scale e_i is the vertex. S_i is diagonal unless ``full``. The prediction is the nearest vertex, which is
    argmax z. Batches hold equally many samples of each class; a class with fewer than 3 does not count. Soft labels
    count as their largest class.

    The loss defines no probabilities: the softmax of z is 0 and 1 to the last bit, and that of z / scale exceeds 0.23
    for no vertex of ten classes. The network's logits are therefore z / (scale T). After training, T is fitted on the
    held-out split (temperature scaling, Guo et al. 2017, arXiv 1706.04599); it is saved with the weights, and
    ``notes`` in ``result.json`` has it as ``temperature``. It does not change predictions. With label noise, the
    probabilities are those of the given labels, since the held-out labels are noisy too. Without a held-out split
    (``validation=0``) T stays 1: the predictions are the same, but confidences are far too low, and a warning says so.
    The training split does not replace it, since a network that memorises its labels is too confident there (on digits
    with correct labels it would do as well: see the results).

    Args:
        run: the run; a teacher is not used.
        scale: mu_T, the distance of each vertex from the origin, in target standard deviations.
        tail: the weight of B.
        full: use the determinant of the whole covariance for classes with 2 C samples or more in the batch.

    Evidence: the paper could not be read. A, the penalty on kurtosis and the defaults are [from memory]; the form of B,
    the diagonal covariance, the mean over classes and balanced batches are [inferred].

    Deviations: the gradient norm is clipped at 20 if the recipe sets no clip, since the gradient for a distance of 70
    would ruin the first steps. Weight decay applies to the last layer too, which it should not; with 5e-4 the means
    end 0.3 from their vertices on average on digits. With several processes, each uses the statistics of its own share
    of the batch.
    """
    per_class = run.recipe.batch_size // run.processes.world // run.data.num_classes
    if per_class < MIN_SAMPLES:
        raise TutelageError(
            f"a batch of {run.recipe.batch_size} holds {per_class} samples of each of {run.data.num_classes} classes; "
            f"their statistics need at least {MIN_SAMPLES}, better 8: use a batch size of "
            f"{MIN_SAMPLES * run.data.num_classes * run.processes.world} or more"
        )
    student = run.student()
    example = run.example(student)
    simplex.apply(student.module, example, scale=scale)
    student = student.rewrapped()
    clip = CLIP if run.recipe.clip is None else run.recipe.clip
    term = GaussianSimplex(simplex.VERTICES, scale, tail, full=full)
    run.fit(Learner(student, None, {"gccs": term}), order=class_balanced, clip=clip)
    _calibrate(run, student)
    return student


def _calibrate(run: Run, student: Tapped) -> None:
    """Fit the temperature on the held-out split."""
    split = run.data.validation
    if split is None or not bool(run.data.targets.labelled(split.labels).any()):
        warnings.warn(
            "no labelled sample is held out to fit the temperature of gccs, so that the student's confidences are far "
            "too low (its predictions are not affected); hold out a part of the training split, e.g. --validation 0.1",
            TutelageWarning,
            stacklevel=3,
        )
        return
    temperature = fitted_temperature(run.predict(student, split), hard_labels(split.labels))
    simplex.set_temperature(student.module, temperature)
    run.note(temperature=temperature)
