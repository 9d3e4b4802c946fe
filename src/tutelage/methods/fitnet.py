"""FitNets."""

from __future__ import annotations

from tutelage.methods import NonNegative, Positive, Share, method
from tutelage.models.tapped import Tapped
from tutelage.sources import Frozen
from tutelage.terms import CrossEntropy, Hint, SoftTargets, Term, Weighted
from tutelage.training.learner import Learner
from tutelage.training.run import Run


@method(paper="Romero, Ballas, Kahou, Chassang, Gatta, Bengio 2015, arXiv 1412.6550", family="representation")
def fitnet(
    run: Run,
    *,
    temperature: Positive = 3.0,
    first_weight: NonNegative = 4.0,
    last_weight: NonNegative = 1.0,
    hint_share: Share = 0.25,
) -> Tapped:
    """Hints: the lower half of the student first learns to predict a middle layer of the teacher."""
    student, teacher = run.student(), run.teacher()
    pairs = run.paired_stages(student, teacher)
    guided, hint = pairs[(len(pairs) - 1) // 2]
    hint_epochs = max(1, round(hint_share * run.epochs))
    run.fit(Learner(student, Frozen(teacher), {"hint": Hint(guided, hint, reduction="mean")}), epochs=hint_epochs)

    def weight(progress: float) -> float:
        return teacher_decay(500 * progress, first_weight, last_weight) / temperature**2

    terms: dict[str, Term | Weighted] = {"ce": CrossEntropy(), "kd": weight * SoftTargets(temperature)}
    run.fit(Learner(student, Frozen(teacher), terms), epochs=max(1, run.epochs - hint_epochs))
    return student


def teacher_decay(epoch: float, first: float = 4.0, last: float = 1.0) -> float:
    """lambda(e) in the authors' 500 epochs of CIFAR-10: ``first``, then linear from epoch 5 to ``last`` at 400."""
    return first - (first - last) * min(max((epoch - 5 + 1) / (400 - 5 + 1), 0.0), 1.0)
