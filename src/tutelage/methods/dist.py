"""Knowledge distillation from a stronger teacher."""

from __future__ import annotations

from tutelage.errors import TutelageError
from tutelage.methods import NonNegative, Positive, method
from tutelage.models.tapped import Tapped
from tutelage.terms import InterClassRelation, IntraClassRelation
from tutelage.training.learner import Learner
from tutelage.training.run import Run


@method(paper="Huang, You, Wang, Qian, Xu 2022, arXiv 2205.10536", family="response", evidence="abstract")
def dist(
    run: Run,
    *,
    beta: NonNegative = 0.5,
    gamma: NonNegative = 0.5,
    temperature: Positive = 4.0,
    ce: NonNegative = 1.0,
) -> Tapped:
    """Knowledge distillation from a stronger teacher (DIST): match correlations instead of probabilities.

        L = ce CE(z, y) + T^2 (beta mean_i (1 - rho(p_i^S, p_i^T)) + gamma mean_j (1 - rho(p_.j^S, p_.j^T)))

    rho is Pearson's correlation, of the classes of a sample i and of the samples of a class j; p is a softmax at
    temperature T. The student need not match the sizes of the probabilities of a teacher that is much more certain.

    Args:
        run: the run.
        beta: the weight of the relations between classes. The paper has 1, 1 and T = 1 for ImageNet, and public code
            2, 2 and T = 4 for CIFAR [from memory]. The default is our choice: with the latter, very small students
            diverged.
        gamma: the weight of the relations between samples.
        temperature: T.
        ce: the weight of the label loss.

    Deviations: none known. With several processes, each correlates its own share of the batch.
    """
    if run.recipe.batch_size < 2:
        raise TutelageError("DIST correlates the samples of a batch; use a batch size of 2 or more")
    student = run.student()
    terms = {
        "ce": ce * run.label_task.label_loss(),
        "inter": beta * InterClassRelation(temperature),
        "intra": gamma * IntraClassRelation(temperature),
    }
    run.fit(Learner(student, run.frozen(*run.teachers()), terms))
    return student
