"""Attention transfer."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tutelage.methods import NonNegative, Positive, Share, default_by, method
from tutelage.models.tapped import Tapped
from tutelage.terms import AttentionTransfer
from tutelage.terms.attention import Form
from tutelage.training.learner import Learner
from tutelage.training.run import Run


@method(paper="Zagoruyko, Komodakis 2017, arXiv 1612.03928", family="representation", task=None, evidence="code")
def at(
    run: Run,
    *,
    form: Form = "code",
    beta: NonNegative = default_by("form", code=250.0, paper=0.1),
    p: Annotated[float, Field(ge=1)] = 2.0,
    kd_alpha: Share = 0.0,
    kd_temperature: Positive = 4.0,
) -> Tapped:
    """Attention transfer (AT): match the spatial attention maps of the teacher's stages.

        L = CE(z, y) + beta (H W / 32^2) sum_j mean over pixels of (Q_S^j - Q_T^j)^2
        Q = vec(sum_c |A_c|^p) / ||sum_c |A_c|^p||_2

    A is the last activation map of a stage j, and H x W the size of the first stage's maps; the loss is averaged over
    the batch. The factor H W / 32^2 makes the weight of ||Q_S - Q_T||^2 the same for every input size; it is 1 at
    32 x 32. Stages are paired from the last one backwards. If two maps differ in size, the larger is average-pooled.

    Args:
        run: the run.
        form: "code", as above; or "paper", equation 2: beta/2 sum_j ||Q_S^j - Q_T^j||_2, not squared and without the
            factor for the size.
        beta: the weight. Its default depends on the form. "code": the authors' code has 1000, which has the same effect
            here at 32 x 32. The default is a quarter of that, our choice: with 1000, small students on 8 x 8 digits
            fell behind plain training within 20 epochs. "paper": 0.1, about the paper's value [as users quote it].
        p: the power of the attention map, 1 or more.
        kd_alpha: combine with Hinton's loss: (1 - kd_alpha) CE + kd_alpha T^2 KL replaces CE. The authors' code has 0.9
            with T = 4 for this.
        kd_temperature: T of Hinton's loss.

    Deviations: the factor for the input size and the default of beta; pooling of maps that differ in size (the paper
    interpolates). The paper's gradient-based attention transfer is not implemented.
    """
    student, teacher = run.student(), run.teacher()
    attention = AttentionTransfer(run.paired_stages(student, teacher), p, form)
    weight = beta / 2 if form == "paper" else beta
    terms = run.label_terms(kd_alpha, kd_temperature) | {"at": weight * attention}
    run.fit(Learner(student, run.frozen(teacher), terms))
    return student
