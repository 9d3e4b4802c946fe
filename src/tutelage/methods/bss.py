"""Knowledge distillation with adversarial samples supporting the decision boundary."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tutelage.attacks import BoundarySamples
from tutelage.attacks.boundary import Norm
from tutelage.methods import Positive, Share, method
from tutelage.models.tapped import Tapped
from tutelage.terms import SoftTargets, Term, Weighted, labels_and_soft_targets
from tutelage.training.learner import Learner
from tutelage.training.run import Run


@method(paper="Heo, Lee, Yun, Choi 2019, arXiv 1805.05532", family="response", evidence="code")
def bss(
    run: Run,
    *,
    temperature: Positive = 3.0,
    share: Annotated[float, Field(gt=0, le=1)] = 0.25,
    steps: Annotated[int, Field(ge=1)] = 10,
    step_size: Positive = 0.3,
    norm: Norm = "first",
    discard_failed: bool = False,
    statistics: Literal["updated", "frozen"] = "updated",
    kd_alpha: Share = 0.0,
    kd_temperature: Positive = 4.0,
) -> Tapped:
    """Boundary samples: match the teacher also where it is about to change its mind.

    L = CE(z, y) + alpha(e) H(q_t(x), q_s(x)) + beta(e) H(q_t(x'), q_s(x')), where q are softmax outputs at temperature
    T, H the cross-entropy without a factor T^2, and x' boundary supporting samples: of the batch those that both
    networks get right, the most disputed first, each moved to the teacher's boundary with another class, which is drawn
    with probability q_k / (1 - q_b). A step is x <- x - eta (L + 1e-4) dL/dx / ||dL/dx||, L = f_b - f_k, in the
    teacher's normalised space, until the teacher no longer says b.
    alpha(e) = 1 + 3 max(1 - e/E, 0) and beta(e) = max(2 (1 - 4/3 e/E), 0): from 4 to 1, and from 2 to 0 at 75 % of the
    run. H and T^2 KL have the same gradient but for T^2, so that in terms of ``SoftTargets`` both are divided by T^2.

    Args:
        run: what to train.
        temperature: T.
        share: how many samples are moved, as a share of the batch; 64 of 256 in the authors' code.
        steps: of the attack, at most.
        step_size: eta.
        norm: "first" as above, the authors' code; "squared" divides by ||dL/dx||^2 (the paper [from memory]).
        discard_failed: leave out samples that do not end in the class aimed at, as in the paper [from memory]; the
            authors' code takes them all.
        statistics: whether the boundary samples count in the running statistics of the student's batch normalisation
            ("updated", the authors' code) or leave them alone ("frozen").
        kd_alpha: above 0, Hinton's own term joins: (1 - kd_alpha) CE + kd_alpha T^2 KL in the place of CE.
        kd_temperature: its T.

    Deviations: the moved images are kept to the exact range of pixels, where the authors' code has [-2.5, 2.5] for
    every channel; alpha and beta fall a step at a time and not an epoch; where fewer samples fit than wanted, they are
    repeated in the second batch without counting twice (batch normalisation sees the repeats).
    """
    student, teacher = run.student(), run.teacher()
    boundary = BoundarySamples(
        teacher,
        share,
        steps=steps,
        step_size=step_size,
        norm=norm,
        discard_failed=discard_failed,
        updates_statistics=statistics == "updated",
    )
    per_square = 1 / temperature**2
    terms: dict[str, Term | Weighted] = {
        **labels_and_soft_targets(kd_alpha, kd_temperature),
        "soft": alpha * (per_square * SoftTargets(temperature)),
        "boundary": beta * (per_square * SoftTargets(temperature).on(boundary)),
    }
    run.fit(Learner(student, run.frozen(teacher), terms))
    return student


def alpha(progress: float) -> float:
    """The weight of the soft targets when this share of the run is done."""
    return 1 + 3 * max(1 - progress, 0.0)


def beta(progress: float) -> float:
    """The weight of the boundary samples when this share of the run is done."""
    return max(2 * (1 - 4 / 3 * progress), 0.0)
