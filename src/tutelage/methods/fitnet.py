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
    """FitNets (hints): the lower half of the student first learns to predict a middle layer of the teacher.

    Stage 1, without labels, trains the student up to its guided layer v_g to predict the teacher's hint layer u_h:

        L = mean over the batch of 1/2 ||u_h(x) - r(v_g(x))||^2

    r is a convolution between the two shapes, which is discarded afterwards. Layers above the guided layer, including
    their buffers, do not change. Stage 2 trains the whole student:

        L = CE(z, y) + lambda(e) H(softmax(v / T), softmax(z / T))

    lambda decreases linearly from ``first_weight`` to ``last_weight`` between 1 % and 80 % of the stage. The soft
    cross-entropy H has no factor T^2 here; the weight of ``SoftTargets`` is lambda / T^2. Guided and hint layer are the
    middle stages of the two networks.

    Args:
        run: the run. Both stages together take its epochs (at least one each), so that methods are compared at equal
            cost.
        mode: "two_stage", as above and in the paper; or "joint", which most benchmarks call FitNet: one stage with
            L = CE(z, y) + beta times the hint loss, without soft targets.
        temperature: T, 3 in the authors' code.
        first_weight, last_weight: of lambda, 4 and 1 in the authors' CIFAR-10 run of 500 epochs.
        hint_share: the share of the epochs that stage 1 takes. Our choice: the authors stop it by the validation error.
        reduction: the unit of the hint loss. "relative" is the mean over the map of (u_h - r)^2 divided by the batch's
            mean of u_h^2; it has no unit and suits every network and input size. "mean" omits the division. "paper" is
            half the sum, C H W / 2 times the mean. The authors' RMSProp is insensitive to this scale; SGD is not.
        beta: the weight of the hint loss with mode=joint. Its default depends on the reduction: 1 for "relative", our
            choice, and 100 for "mean", as in benchmarks. "paper" has no default, since the paper has no joint mode.
        regressor: "auto" omits the regressor if the shapes are equal, as the authors' code does; or "always", "never".
        kd_alpha: combine with Hinton's loss: (1 - kd_alpha) CE + kd_alpha T^2 KL replaces CE.
        kd_temperature: T of Hinton's loss.

    Deviations: the relative loss. Gradients of stage 1 are clipped at a norm of 1, for students whose maps start at a
    very different scale from the teacher's. The regressor has no final non-linearity (the paper's has the hint
    layer's), since maps may be negative here. lambda changes with every step instead of every epoch. Both stages use
    the run's recipe.
    """
    if mode == "joint" and beta is None:
        raise TutelageError(f"beta has no default with mode=joint and reduction={reduction}; set it")
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
    second_stage = Learner(student, run.frozen(teacher), terms)
    run.check(second_stage)
    hint_epochs = max(1, round(hint_share * run.epochs))
    clip = min(1.0, run.recipe.clip or 1.0)
    run.fit(Learner(student, run.frozen(teacher), {"hint": hints}), epochs=hint_epochs, clip=clip)
    run.fit(second_stage, epochs=max(1, run.epochs - hint_epochs))
    return student


def teacher_decay(epoch: float, first: float = 4.0, last: float = 1.0) -> float:
    """lambda(e) of the authors' 500 epochs on CIFAR-10: ``first`` to epoch 5, then linear to ``last`` at epoch 400."""
    return first - (first - last) * min(max((epoch - 5 + 1) / (400 - 5 + 1), 0.0), 1.0)
