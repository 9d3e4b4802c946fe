"""A comprehensive overhaul of feature distillation."""

from __future__ import annotations

from tutelage.errors import TutelageError
from tutelage.methods import NonNegative, Positive, Share, method
from tutelage.models.roles import preactivation
from tutelage.models.tapped import Tapped
from tutelage.terms import FeatureOverhaul
from tutelage.training.learner import Learner
from tutelage.training.run import Run


@method(
    paper="Heo, Kim, Yun, Park, Kwak, Choi 2019, arXiv 1904.01866",
    family="representation",
    task=None,
    evidence="code",
)
def ofd(
    run: Run,
    *,
    weight: NonNegative = 1e-3,
    kd_alpha: Share = 0.0,
    kd_temperature: Positive = 4.0,
) -> Tapped:
    """Overhaul of feature distillation (OFD): match the teacher's maps before the ReLU, where they are not too low.

        L = CE(z, y) + weight sum_j 2^(j - J) D(c_j(s_j), t_j)
        D = sum over elements of (s - max(t, m))^2, or 0 where s <= max(t, m) and t <= 0

    s_j and t_j are the maps of stage j of J before the ReLU that ends it. m < 0 is the mean of a channel's values below
    0. c_j is a trained 1x1 convolution with batch normalisation (a connector), which is discarded. Positive values of
    the teacher are matched; where its ReLU lets nothing pass, the student only has to be as low.

    Args:
        run: the run.
        weight: the weight of the sum over elements: 1e-3 in the authors' code for CIFAR, 1e-4 for ImageNet. Smaller
            maps need a larger one.
        kd_alpha: combine with Hinton's loss: (1 - kd_alpha) CE + kd_alpha T^2 KL replaces CE.
        kd_temperature: T of Hinton's loss.

    Deviations: the teacher is in eval mode; in the authors' code its batch normalisation uses the batch. m is the mean
    over the batches so far in place of that of a normal distribution with the parameters of the teacher's batch
    normalisation, so that any teacher has one; with several processes, each has its own. A student whose stages end in
    a function (``F.relu``) is read after it. If the maps differ in size, the larger is average-pooled.

    Raises:
        TutelageError: the teacher's maps before the ReLU cannot be read, since a stage ends in a function.
    """
    student, teacher = run.student(), run.teacher()
    pairs = []
    for role, teacher_role in run.paired_stages(student, teacher):
        before, teacher_before = preactivation(role), preactivation(teacher_role)
        if teacher_before not in teacher.taps:
            raise TutelageError(
                f"OFD compares maps before the ReLU, and {teacher_role} of the teacher, {type(teacher.module).__name__}"
                ", ends in a function; make the ReLU a module, or name the layer before it, for example "
                f'roles={{"{teacher_before}": "layer1.bn2"}}'
            )
        pairs.append((before if before in student.taps else role, teacher_before))
    terms = run.label_terms(kd_alpha, kd_temperature) | {"overhaul": weight * FeatureOverhaul(tuple(pairs))}
    run.fit(Learner(student, run.frozen(teacher), terms))
    return student
