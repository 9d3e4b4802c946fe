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
    """Attention: where each stage of the teacher responds, the student is to respond.

    L = CE(z, y) + beta * (H W / 32^2) * sum over stages j of mean over pixels of (Q_S^j - Q_T^j)^2, averaged over the
    batch, with Q = vec(sum_c |A_c|^p) / ||.||_2 of the stage's last map A, and H x W the size of the first stage's
    maps. The factor keeps the weight on ||Q_S - Q_T||^2, which is beta divided by a map's pixels, the same for every
    input size; at 32 x 32 it is 1. Stages are paired from the last one backwards; of maps of different sizes the larger
    is average-pooled.

    Args:
        run: what to train.
        form: "code", as above; "paper", equation 2: beta/2 * sum_j ||Q_S^j - Q_T^j||_2, not squared, with no factor for
            the size.
        beta: its default depends on the form. "code": the authors' code has 1000, which recovers it at 32 x 32; the
            default is a quarter of that, and ours: with 1000 small students on 8 x 8 digits fell behind the plain one
            where they were trained for 20 epochs. "paper": 0.1, about the paper's [as users quote it].
        p: the power of the attention map, 1 or more.
        kd_alpha: above 0, Hinton's term joins: (1 - kd_alpha) CE + kd_alpha T^2 KL in the place of CE. The authors'
            code has 0.9 with T = 4 for this.
        kd_temperature: its T.

    Deviations: the factor for the input size and the default of beta; pooling where sizes differ (the paper
    interpolates). Gradient-based attention transfer, which the paper also has, is not here.
    """
    student, teacher = run.student(), run.teacher()
    attention = AttentionTransfer(run.paired_stages(student, teacher), p, form)
    weight = beta / 2 if form == "paper" else beta
    terms = run.label_terms(kd_alpha, kd_temperature) | {"at": weight * attention}
    run.fit(Learner(student, run.frozen(teacher), terms))
    return student
