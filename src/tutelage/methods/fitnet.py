"""FitNets."""

from __future__ import annotations

from typing import Literal

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
    regressor: Literal["auto", "always", "never"] = "auto",
) -> Tapped:
    """Hints: the lower half of the student first learns to predict a middle layer of the teacher.

    Stage 1, without labels: mean over the batch and the map of (u_h(x) - r(v_g(x)))^2, where u_h is the teacher up to
    its hint layer, v_g the student up to its guided layer, and r a convolution made from the two shapes, which is then
    thrown away. What lies above the guided layer, buffers included, is not touched.
    Stage 2, the whole student: L = CE(z, y) + lambda(e) H(softmax(v / T), softmax(z / T)), where lambda falls linearly
    from ``first_weight`` to ``last_weight`` between 1 % and 80 % of the stage, a step an epoch. The soft cross-entropy
    has no factor T^2 here; written with ``SoftTargets`` its weight is lambda / T^2.
    Guided and hint layers are the middle stages of both networks.

    Args:
        run: what to train. Both stages together take the run's epochs (each one at least), so that methods are compared
            at equal cost.
        temperature: T, 3 in the authors' code.
        first_weight, last_weight: of lambda, 4 and 1 in the authors' CIFAR-10 run of 500 epochs.
        hint_share: the share of the epochs that stage 1 takes. Ours: the authors stop it by its validation error.
        regressor: "auto" has none where the two shapes agree, as the authors' code; "always", "never".

    Deviations: the paper's stage-1 loss is half the squared norm, C H W / 2 times the mean used here, and its optimiser
    RMSProp, which does not feel the difference; the recipe's SGD does. The regressor has no final non-linearity (the
    paper's has the hint layer's), since maps here may be negative. Both stages use the run's recipe.
    """
    student, teacher = run.student(), run.teacher()
    pairs = run.paired_stages(student, teacher)
    guided, hint = pairs[(len(pairs) - 1) // 2]
    hint_epochs = max(1, round(hint_share * run.epochs))
    run.fit(Learner(student, Frozen(teacher), {"hint": Hint(guided, hint, "mean", regressor)}), epochs=hint_epochs)

    def weight(progress: float) -> float:
        return teacher_decay(500 * progress, first_weight, last_weight) / temperature**2

    terms: dict[str, Term | Weighted] = {"ce": CrossEntropy(), "kd": weight * SoftTargets(temperature)}
    run.fit(Learner(student, Frozen(teacher), terms), epochs=max(1, run.epochs - hint_epochs))
    return student


def teacher_decay(epoch: float, first: float = 4.0, last: float = 1.0) -> float:
    """lambda(e) in the authors' 500 epochs of CIFAR-10: ``first``, then linear from epoch 5 to ``last`` at 400."""
    return first - (first - last) * min(max((epoch - 5 + 1) / (400 - 5 + 1), 0.0), 1.0)
