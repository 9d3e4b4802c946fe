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
    """Boundary supporting samples (BSS): match the teacher also on samples moved to its decision boundary.

        L = CE(z, y) + alpha(e) H(q_t(x), q_s(x)) + beta(e) H(q_t(x'), q_s(x'))

    q are the softmax outputs at temperature T, and H is the cross-entropy without a factor T^2. The boundary supporting
    samples x' are made from samples of the batch that both networks classify correctly, those first on which the two
    disagree most. Each is moved from its class b towards another class k, drawn with probability q_k / (1 - q_b), in
    the teacher's normalised input space, until the teacher no longer predicts b:

        x <- x - eta (L + 1e-4) dL/dx / ||dL/dx||,   L = f_b - f_k

    alpha(e) = 1 + 3 max(1 - e/E, 0) decreases from 4 to 1, beta(e) = max(2 (1 - 4/3 e/E), 0) from 2 to 0 at 75 % of the
    run. The gradients of H and T^2 KL differ by the factor T^2, so the weights of ``SoftTargets`` are divided by T^2.

    Args:
        run: the run.
        temperature: T.
        share: the share of the batch that is moved; 64 of 256 samples in the authors' code.
        steps: the maximum number of steps of the attack.
        step_size: eta.
        norm: "first", as above and in the authors' code; "squared" divides by ||dL/dx||^2 (the paper [from memory]).
        discard_failed: omit samples that do not end in the target class, as in the paper [from memory]; the authors'
            code uses all.
        statistics: "updated" lets the boundary samples update the running statistics of the student's batch
            normalisation, as in the authors' code; "frozen" does not.
        kd_alpha: combine with Hinton's loss: (1 - kd_alpha) CE + kd_alpha T^2 KL replaces CE.
        kd_temperature: T of Hinton's loss.

    Deviations: moved images are clamped to the exact range of pixels; the authors' code clamps every channel to
    [-2.5, 2.5]. alpha and beta change with every step instead of every epoch. If too few samples qualify, they are
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
    scale = 1 / temperature**2
    terms: dict[str, Term | Weighted] = {
        **labels_and_soft_targets(kd_alpha, kd_temperature),
        "soft": alpha * (scale * SoftTargets(temperature)),
        "boundary": beta * (scale * SoftTargets(temperature).on(boundary)),
    }
    run.fit(Learner(student, run.frozen(teacher), terms))
    return student


def alpha(progress: float) -> float:
    """The weight of the soft targets at this progress of the run, in [0, 1]."""
    return 1 + 3 * max(1 - progress, 0.0)


def beta(progress: float) -> float:
    """The weight of the boundary samples at this progress of the run, in [0, 1]."""
    return max(2 * (1 - 4 / 3 * progress), 0.0)
