"""Multi-level logit distillation."""

from __future__ import annotations

from tutelage.errors import TutelageError
from tutelage.methods import NonNegative, method
from tutelage.models.tapped import Tapped
from tutelage.terms import MultiLevelCorrelations, SoftTargets, Term, Weighted
from tutelage.training.learner import Learner
from tutelage.training.run import Run


@method(paper="Jin, Wang, Lin 2023, Multi-Level Logit Distillation, CVPR", family="response", evidence="abstract")
def mlkd(
    run: Run,
    *,
    temperatures: tuple[float, ...] = (2.0, 3.0, 4.0, 5.0, 6.0),
    instance: NonNegative = 1.0,
    correlations: NonNegative = 1.0,
    ce: NonNegative = 1.0,
) -> Tapped:
    """Multi-level logit distillation (MLKD): match predictions, and their correlations over batch and classes.

        L = ce CE(z, y) + mean over T of (instance T^2 KL(p^T || p^S)
            + correlations (1/B ||P_S P_S^T - P_T P_T^T||_F^2 + 1/C ||P_S^T P_S - P_T^T P_T||_F^2))

    P (B x C) holds the probabilities p of a batch, softmax(z / T), at several temperatures T.

    Args:
        run: the run.
        temperatures: T.
        instance: the weight of the divergence of single predictions.
        correlations: the weight of the two matrices. All defaults are our choice; the temperatures are those of the
            authors' code.
        ce: the weight of the label loss.

    Deviations: the mean over temperatures in place of the sum. The authors also mask the half of the samples and
    classes of which the teacher is most certain, and add a strongly augmented copy of each image; both are left out.
    """
    if run.recipe.batch_size < 2:
        raise TutelageError("MLKD correlates the samples of a batch; use a batch size of 2 or more")
    student = run.student()
    levels = MultiLevelCorrelations(temperatures)
    terms: dict[str, Term | Weighted] = {"ce": ce * run.label_task.label_loss()}
    terms |= {
        f"kd {temperature:g}": instance / len(levels.temperatures) * SoftTargets(temperature)
        for temperature in levels.temperatures
    }
    run.fit(Learner(student, run.frozen(*run.teachers()), terms | {"correlations": correlations * levels}))
    return student
