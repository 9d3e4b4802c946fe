"""FitNets."""

from __future__ import annotations

from typing import Literal

from tutelage.errors import TutelageError
from tutelage.methods import NonNegative, Positive, Share, default_by, method
from tutelage.models.tapped import Tapped
from tutelage.terms import Hint, Term, Weighted
from tutelage.terms.hint import Reduction
from tutelage.training.learner import Learner
from tutelage.training.run import Run


@method(
    paper="Romero, Ballas, Kahou, Chassang, Gatta, Bengio 2015, arXiv 1412.6550",
    family="representation",
    task=None,
    evidence="code",
)
def fitnet(
    run: Run,
    *,
    mode: Literal["two_stage", "joint"] = "two_stage",
    temperature: Positive = 3.0,
    first_weight: NonNegative = 4.0,
    last_weight: NonNegative = 1.0,
    hint_share: Share = 0.25,
    reduction: Reduction = "relative",
    beta: NonNegative | None = default_by("reduction", relative=1.0, mean=100.0, paper=None),
    regressor: Literal["auto", "always", "never"] = "auto",
    kd_alpha: Share = 0.0,
    kd_temperature: Positive = 4.0,
) -> Tapped:
    """Hints: the lower half of the student first learns to predict a middle layer of the teacher.

    Stage 1, without labels: the mean over the batch of 1/2 ||u_h(x) - r(v_g(x))||^2 in the units of ``reduction``,
    where u_h is the teacher up to its hint layer, v_g the student up to its guided layer, and r a convolution made from
    the two shapes, which is then thrown away. What lies above the guided layer, buffers included, is not touched.
    Stage 2, the whole student: L = CE(z, y) + lambda(e) H(softmax(v / T), softmax(z / T)), where lambda falls linearly
    from ``first_weight`` to ``last_weight`` between 1 % and 80 % of the stage. The soft cross-entropy has no factor T^2
    here; written with ``SoftTargets`` its weight is lambda / T^2.
    Guided and hint layers are the middle stages of both networks.

    Args:
        run: what to train. Both stages together take the run's epochs (each one at least), so that methods are compared
            at equal cost.
        mode: "two_stage", as above and in the paper. "joint" is not the paper's procedure but what most benchmarks call
            FitNet: one stage, L = CE(z, y) + beta * the hint loss of stage 1, and no soft targets.
        temperature: T, 3 in the authors' code.
        first_weight, last_weight: of lambda, 4 and 1 in the authors' CIFAR-10 run of 500 epochs.
        hint_share: the share of the epochs that stage 1 takes. Ours: the authors stop it by its validation error.
        reduction: "relative", the mean over the map of (u_h - r)^2 divided by the batch's mean of u_h^2, has no unit
            and suits every network and input size; "mean" is without the division; "paper" half the sum, C H W / 2
            times the mean. The authors' RMSProp does not feel the difference; the recipe's SGD does.
        beta: the weight of the hint loss in the joint form. Its default depends on the reduction: 1 for "relative",
            which is ours, and the benchmarks' 100 for "mean". "paper" has none, since the paper has no joint form.
        regressor: "auto" has none where the two shapes agree, as the authors' code; "always", "never".
        kd_alpha: above 0, Hinton's own term joins: (1 - kd_alpha) CE + kd_alpha T^2 KL in the place of CE.
        kd_temperature: its T.

    Deviations: the relative loss, as said; gradients of stage 1 are clipped at a length of 1, for students whose maps
    start at quite another scale than the teacher's. The regressor has no final non-linearity (the paper's has the hint
    layer's), since maps here may be negative. lambda falls a step at a time and not an epoch. Both stages use the run's
    recipe.
    """
    if mode == "joint" and beta is None:
        raise TutelageError(f"beta has no default with mode=joint and reduction={reduction}; give one")
    student, teacher = run.student(), run.teacher()
    pairs = run.paired_stages(student, teacher)
    guided, hint = pairs[(len(pairs) - 1) // 2]
    hints = Hint(guided, hint, reduction, regressor)
    terms: dict[str, Term | Weighted] = run.label_terms(kd_alpha, kd_temperature)
    if mode == "joint":
        run.fit(Learner(student, run.frozen(teacher), terms | {"hint": (beta or 0.0) * hints}))
        return student

    def weight(progress: float) -> float:
        return teacher_decay(500 * progress, first_weight, last_weight) / temperature**2

    if first_weight or last_weight:
        terms["soft"] = weight * run.label_task.soft_targets(temperature)
    taught = Learner(student, run.frozen(teacher), terms)
    run.check(taught)
    hint_epochs = max(1, round(hint_share * run.epochs))
    clip = min(1.0, run.recipe.clip or 1.0)
    run.fit(Learner(student, run.frozen(teacher), {"hint": hints}), epochs=hint_epochs, clip=clip)
    run.fit(taught, epochs=max(1, run.epochs - hint_epochs))
    return student


def teacher_decay(epoch: float, first: float = 4.0, last: float = 1.0) -> float:
    """lambda(e) in the authors' 500 epochs of CIFAR-10: ``first``, then linear from epoch 5 to ``last`` at 400."""
    return first - (first - last) * min(max((epoch - 5 + 1) / (400 - 5 + 1), 0.0), 1.0)
